"""What a watcher is made of: the state, new normals, proposals, and a disk that is full."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

import pad
from pad.detector import Detector
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.judging.fusion import prior_weights
from pad.learning.quick import look
from pad.views.features import Features, joined_features
from pad.views.quick import QuickViews
from pad.watching.arrivals import Folder
from pad.watching.features import measures, montage, packed, unpacked
from pad.watching.new_normal import FOLDS, NewNormal
from pad.watching.output import OutputFile
from pad.watching.proposing import COHESION, belongs_to, groups, vectors
from pad.watching.request import WatchRequest
from pad.watching.state import MOST_BUFFERED, Event, Kept, State
from pad.watching.watcher import Watcher


@pytest.fixture(scope="module")
def detector(boots: Path) -> Detector:
    return pad.fit(boots, steps=0, device="cpu")


@pytest.fixture(scope="module")
def trousers(detector: Detector, fashion: Path) -> Features:
    return features(detector, fashion / "test" / "trouser")


def features(detector: Detector, folder: Path) -> Features:
    return look(detector, resolve([folder], "evaluate")).features


def test_features_come_back_as_they_were(trousers: Features) -> None:
    parts = [packed(trousers.take(torch.tensor([i]))) for i in range(3)]
    back = unpacked(parts)
    assert torch.equal(back.deep[0], trousers.deep[0][:3])
    assert torch.equal(back.middle, trousers.middle[:3])
    assert torch.equal(back.local, trousers.local[:3])
    assert back.layers == trousers.layers
    with pytest.raises(PadError, match="cannot be read"):
        unpacked([b"something else"])


def by_hand(quick: QuickViews, accepted: Features) -> QuickViews:
    """Fitted on the accepted pictures; the covariances of *parts* are the model's."""
    views = QuickViews(quick.names, quick.backbone)
    views.load(quick.state_dict())
    for name in ("whole", "middle"):
        views.of(name).fit(accepted)
    views.of("parts").mean = accepted.local.float().mean(0).half()  # type: ignore[attr-defined]
    return views


@pytest.mark.parametrize("n", [14, 20])
def test_the_p_value_of_a_new_normal(n: int, detector: Detector, trousers: Features, fashion: Path) -> None:
    """Against the definitions: fits by hand, Owen's limit, ranks. Of 14 none can be conformal at 5
    %."""
    quick = detector.quick
    assert quick is not None
    accepted = trousers.take(torch.arange(n))
    normal = NewNormal(accepted, quick, 0.05)

    def out_of_fold(pictures: Features) -> np.ndarray:
        scores = torch.empty(len(pictures), len(quick.names))
        for fold in range(FOLDS):
            held_out = torch.arange(len(pictures)) % FOLDS == fold
            views = by_hand(quick, pictures.take(~held_out))
            scores[held_out] = views.scores(pictures.take(held_out))
        return scores.double().log().numpy()

    def fused(values: np.ndarray, own: np.ndarray) -> np.ndarray:
        u = (values - own.mean(0)) / own.std(0, ddof=1)
        return np.log((prior_weights(quick.names, likeness=quick.likeness) * np.exp(u)).sum(1))

    logs = out_of_fold(accepted)
    first = fused(logs, logs)
    median = np.median(first)
    alike = first <= median + 3.5 * 1.4826 * np.median(np.abs(first - median))
    accepted = accepted.take(torch.from_numpy(alike))
    logs = out_of_fold(accepted)
    own = fused(logs, logs)
    assert normal.size == len(own)
    new = joined_features([features(detector, fashion / "test" / "shirt"), trousers])
    given = fused(by_hand(quick, accepted).scores(new).double().log().numpy(), logs)
    expected = []
    for value in given:
        low, high = -60.0, 60.0  # the mean of a noncentral t that stays below the value nine times in ten
        for _ in range(100):
            middle = (low + high) / 2
            z = (value - own.mean()) / own.std(ddof=1)
            below = stats.nct.cdf(z * len(own) ** 0.5, len(own) - 1, middle)
            low, high = (middle, high) if below > 0.9 else (low, middle)
        predicted = float(stats.norm.sf(low / len(own) ** 0.5))
        ranked = (1 + (own >= value).sum()) / (len(own) + 1)
        expected.append(max(predicted, ranked) if len(own) >= 19 else predicted)
    assert normal.p_values(new) == pytest.approx(np.array(expected), rel=5e-3, abs=1e-9)
    assert quick.scores(new).isfinite().all()  # the model's own views are as they were


def test_a_stranger_among_the_accepted_does_not_let_strangers_in(
    detector: Detector, trousers: Features, fashion: Path
) -> None:
    quick = detector.quick
    assert quick is not None
    bags = features(detector, fashion / "test" / "bag")
    mixed = unpacked(
        [packed(trousers.take(torch.tensor([i]))) for i in range(14)] + [packed(bags.take(torch.tensor([0])))]
    )
    normal = NewNormal(mixed, quick, 0.05)
    assert (normal.p_values(bags.take(torch.arange(1, 20))) <= 0.05).mean() >= 0.9
    assert (normal.p_values(trousers.take(torch.arange(14, 20))) > 0.05).mean() >= 0.5


def cloud(direction: int, count: int, spread: float, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    centre = F.one_hot(torch.tensor(direction), 40).float()
    return F.normalize(centre + spread * torch.randn(count, 40, generator=random))


def test_groups_are_cohesive_and_large_enough() -> None:
    normals, lone = cloud(0, 30, 0.1, 1), cloud(5, 3, 0.1, 4)
    one, other = cloud(1, 15, 0.1, 2), cloud(2, 20, 0.1, 3)
    flagged = torch.cat([one, lone, other])
    assert groups(flagged, normals) == [list(range(18, 38)), list(range(15))]
    assert groups(torch.cat([one[:11], lone]), normals) == []
    assert groups(cloud(0, 30, 0.1, 9), normals) == []  # no more like itself than like what is known
    assert groups(torch.eye(40)[1:], normals) == []  # many, but each alone
    assert groups(flagged[:0], normals) == []
    assert belongs_to(cloud(1, 1, 0.1, 7)[0], [(4, one), (9, other)], normals) == 4
    assert belongs_to(cloud(3, 1, 0.1, 7)[0], [(4, one), (9, other)], normals) is None
    assert belongs_to(one[0], [], normals) is None


def test_cohesion_is_the_silhouette(detector: Detector, trousers: Features) -> None:
    quick = detector.quick
    assert quick is not None
    flagged, normals = vectors(trousers).double(), quick.kept.features.double()
    (members,) = groups(flagged.float(), normals.float())
    chosen = flagged[members]
    pairs = [1 - float(a @ b) for i, a in enumerate(chosen) for j, b in enumerate(chosen) if i != j]
    known = [1 - float(a @ b) for a in chosen for b in normals]
    assert 1 - np.mean(pairs) / np.mean(known) >= COHESION
    assert len(members) >= 15


def test_measures_say_what_they_are_named_after() -> None:
    random = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 16, 16, generator=random) * 1.2 - 0.6, size=64, mode="bilinear")
    x = torch.cat([x, x * 0.8 - 0.2, F.avg_pool2d(x, 5, 1, 2)])  # as it is, 20 % darker, blurred
    whole, darker, blurred = measures(x)
    assert darker["light"] == pytest.approx(0.8 * whole["light"], rel=1e-4)
    assert darker["sharpness"] == pytest.approx(whole["sharpness"], abs=1e-3)
    assert darker["red-green"] == pytest.approx(whole["red-green"], abs=2e-2)
    assert blurred["sharpness"] < whole["sharpness"] - 0.3
    red = x[:1].clone()
    red[:, 0] += 0.2
    assert measures(red)[0]["red-green"] > whole["red-green"] + 0.1
    assert measures(x[:1, :1])[0].keys() == {"light", "sharpness"}


def test_a_montage_of_nothing_and_of_what_is_no_picture() -> None:
    assert montage([])[:2] == b"\xff\xd8"
    assert montage([b"", b"nonsense"])[:2] == b"\xff\xd8"


# The state


def event(path: str, key: bytes = b"", verdict: str = "anomaly", when: float = 0.0) -> Event:
    return Event(path, when, key, score=1.0, p_value=0.01, verdict=verdict)


def test_events_are_added_once_and_in_whole(tmp_path: Path) -> None:
    state = State(tmp_path, create=True)
    with state.transaction():
        assert state.add_event(event("a", b"a"))
        assert not state.add_event(event("a", b"a"))
        assert state.add_event(event("b"))
        assert state.add_event(event("b"))
    with pytest.raises(PadError, match="no proposal 9"), state.transaction():  # noqa: PT012 - one transaction
        state.add_event(event("c", b"c"))
        state.accept(9, "a test")
    assert [e.path for e in state.events()] == ["a", "b", "b"]
    assert not state.is_seen(b"c")
    assert [e.id for e in State(tmp_path).latest_events(2)] == [3, 2]
    assert state.count() == {"events": 3, "normal": 0, "anomaly": 3, "error": 0}


def test_the_buffer_is_bounded(tmp_path: Path) -> None:
    state = State(tmp_path, create=True)
    with state.transaction():
        for number in range(1, MOST_BUFFERED + 6):
            state.add_to_buffer(Kept(number, b"f", b"t"))
    assert state.buffered() == list(range(6, MOST_BUFFERED + 6))


def test_retention(tmp_path: Path) -> None:
    state = State(tmp_path, create=True)
    with state.transaction():
        for number in range(40):
            state.add_event(event(f"{number}", f"{number}".encode(), when=float(number)))
    assert state.forget(20.0, None, 16, present=[b"3"]) == 15  # from 16 on they are needed
    assert [e.id for e in state.events()] == list(range(16, 41))
    assert state.is_seen(b"3")  # it still lies there
    assert not state.is_seen(b"4")
    assert state.is_seen(b"30")
    assert state.forget(None, 1, 10**9) == 2  # a tenth at a time
    assert state.forget(None, 10**9, 10**9) == 0
    assert state.count()["events"] == 40


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path, create=True)
    with state.transaction():
        state.set_fact("format", 99)
    with pytest.raises(PadError, match="another pad"):
        State(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "watch.sqlite").write_bytes(b"no database at all, but a text" * 100)
    with pytest.raises(PadError, match="cannot be used"):
        State(tmp_path / "b")


def test_an_output_file_that_was_cut_is_completed(tmp_path: Path) -> None:
    state, path = State(tmp_path, create=True), tmp_path / "o.jsonl"
    with state.transaction():
        for number in range(6):
            state.add_event(event(f"{number}"))
    OutputFile(path, state)
    whole = path.read_bytes()
    assert whole == b"".join(e.line() for e in state.events())
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        OutputFile(path, state)
        assert path.read_bytes() == whole
    for other in (b"something else\n", b"no line", b'{"name": 3}\n'):
        path.write_bytes(other)
        with pytest.raises(PadError, match="holds something else"):
            OutputFile(path, state)
        assert path.read_bytes() == other


def test_a_full_disk_is_said_and_survived(
    detector: Detector, fashion: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, path in enumerate(sorted((fashion / "test" / "trouser").glob("*.png"))):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number:02d}.png").write_bytes(path.read_bytes())
    state = State(tmp_path / "state", create=True)
    source = Folder(tmp_path / "in", state.is_seen)
    request = WatchRequest("m", str(tmp_path / "in"), str(tmp_path / "state"), once=True)
    watcher = Watcher(detector, state, source, OutputFile(tmp_path / "o.jsonl", state), request)
    pages = state.database.execute("PRAGMA page_count").fetchone()[0]
    state.database.execute(f"PRAGMA max_page_count = {pages + 40}")

    room = threading.Event()
    wait = watcher.stopping.wait

    def waited(seconds: float | None = None) -> bool:
        assert "full" in caplog.text
        room.set()
        state.database.execute("PRAGMA max_page_count = 1000000")
        return wait(0)

    watcher.stopping.wait = waited  # type: ignore[method-assign]
    watcher.run()
    assert room.is_set()
    assert "there is room again" in caplog.text
    assert sorted(Path(e.path).name for e in state.events()) == [f"{number:02d}.png" for number in range(20)]
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == 20
    assert len(state.proposals()) == 1
