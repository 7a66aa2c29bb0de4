"""A folder played as a stream: `pad watch` judges each picture as it comes, and proposes what keeps coming
back.

    python examples/stream.py [MODEL [PICTURES [STATE [SECONDS]]]]

MODEL: a run folder, a model folder or zoo:NAME; one with quick views learns new normals. PICTURES: a folder.
STATE: where the watcher remembers. SECONDS: between two pictures. Without words a model of boots is fitted
first, and boots are followed by trousers; look at the page that is named, and accept them there, or with
`pad watch accept 1 --state STATE`.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pad

DATA = Path(__file__).parent.parent / "tests" / "data" / "fashion"


def main(model: str, pictures: list[Path], state: Path, seconds: float) -> None:
    # Paths go in on standard input, a line each; lines of JSON come out at once.
    command = [sys.executable, "-m", "pad", "watch", model, "-", "--state", str(state), "--adopt", "ask"]
    if importlib.util.find_spec("fastapi"):  # pip install 'pad-anomaly[serve]'
        command += ["--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        for path in pictures:
            print(path, file=watcher.stdin, flush=True)
            found = json.loads(watcher.stdout.readline())
            kind = "" if found["cluster"] is None else f", like proposal {found['cluster']}"
            print(
                f"{path.parent.name}/{path.name}: {found['verdict']}, p-value {found['p_value']:.3f}{kind}",
                flush=True,
            )
            time.sleep(seconds)


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given:
        pad.fit(DATA / "train" / "ankle-boot", steps=0).save("runs/boots")
    defaults = ["runs/boots", "", "runs/stream", "0.5"]
    model, folder, state, seconds = given + defaults[len(given) :]
    folders = [Path(folder)] if folder else [DATA / "test" / "normal", DATA / "test" / "trouser"]
    main(
        model,
        [path for place in folders for path in sorted(place.glob("*.png"))],
        Path(state),
        float(seconds),
    )
