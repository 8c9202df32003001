"""A small imitation of the published SYSU-Shape folders."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

COLOUR = (200, 40, 30)


def annotate(path: Path, boxes: list[tuple[int, int, int, int]]) -> None:
    """Write boxes (x0, y0, x1, y1), 0-based and inclusive, in the layout of the dataset: 1-based,
    unsigned, relative.
    """
    objects = np.empty((1, len(boxes)), dtype=[("box_coord", "O"), ("obj_contour", "O")])
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        objects[0, k]["box_coord"] = np.array([[y0 + 1, y1 + 1, x0 + 1, x1 + 1]], dtype=np.uint16)
        w, h = x1 - x0, y1 - y0
        objects[0, k]["obj_contour"] = np.array([[0, w, w, 0], [0, 0, h, h]], dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"object": objects})


def clone(root: Path, classes=("cup", "hat"), n: int = 10) -> Path:
    for c, name in enumerate(classes):
        for part in ("images", "contours"):
            (root / name / part).mkdir(parents=True)
        for k in range(n):
            rng = np.random.default_rng(100 * c + k)
            photo = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
                (120, 90)
            )
            box = (10 + 5 * k, 20, 40 + 5 * k, 60)
            ImageDraw.Draw(photo).rectangle(box, fill=COLOUR)
            photo.save(root / name / "images" / f"photo_{k}.jpg", quality=95)
            Image.new("L", (31, 41), 255).save(root / name / "contours" / f"photo_{k}.jpg")
            annotate(
                root / name / "annotations" / f"photo_{k}.mat",
                [(0, 0, 4, 4), box] if k == 3 else [box],
            )
    return root
