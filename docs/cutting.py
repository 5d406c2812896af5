"""Draws docs/cutting.png from rendered text: `python docs/cutting.py`."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]
matplotlib.use("Agg")


def main() -> None:
    import matplotlib.pyplot as plt
    import pages
    from PIL import Image

    from maskocr_core.data.readers import cutting

    page, lines = pages.page(lines=3, radius=1100, pitch=34, shade=70, width=760, seed=3)
    line = lines[1]
    along = np.array(line.baseline)
    tangents = np.gradient(along, axis=0)
    normals = np.column_stack([-tangents[:, 1], tangents[:, 0]]) / np.linalg.norm(tangents, axis=1, keepdims=True)
    polygon = np.concatenate([along - 25 * normals, (along + 8 * normals)[::-1]])
    (left, top), (right, bottom) = polygon.min(axis=0).astype(int), polygon.max(axis=0).astype(int) + 1
    trace = cutting.trace(page.shape, [tuple(point) for point in along], [tuple(point) for point in polygon])

    pictures = {
        "the page, with polygon and baseline": page[max(top - 45, 0) : bottom + 45, left - 20 : right + 20],
        "a crop of the bounding box": page[top:bottom, left:right],
        "the line as it is cut: along the baseline, its neighbours replaced by its own paper": cutting.cut(page, trace),
    }
    heights = [picture.shape[0] + 30 for picture in pictures.values()]
    figure, axes = plt.subplots(3, figsize=(9, 9 * sum(heights) / (right - left + 40)), height_ratios=heights)
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, loc="left", fontsize=10)
        axis.axis("off")
    origin = np.array([left - 20, max(top - 45, 0)])
    axes[0].plot(*(along - origin).T, color="tab:red", linewidth=1.5)
    axes[0].fill(*(polygon - origin).T, facecolor="none", edgecolor="tab:blue", linewidth=1.2)
    figure.tight_layout()
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(48, dither=Image.Dither.NONE).save(HERE / "cutting.png", optimize=True)


if __name__ == "__main__":
    main()
