"""What names mean: folders of normal images and of masks, and files that are no images."""

from __future__ import annotations

from pathlib import PurePath

NORMAL_FOLDERS = ("normal", "good")
MASK_FOLDER = "ground_truth"
SIDECARS = frozenset(
    {
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".md",
        ".rst",
        ".yaml",
        ".yml",
        ".toml",
        ".xml",
        ".html",
        ".log",
    }
    | {".ini", ".cfg", ".db", ".py", ".ipynb", ".npy", ".npz", ".pt", ".pth", ".pkl", ".safetensors"}
    | {".zip", ".gz", ".tar", ".parquet", ".pdf"}
)


def counts_as_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return not name.startswith(".") and PurePath(name).suffix.lower() not in SIDECARS
