"""What `data.py` compares: ways to keep lines, and to read them into training batches.

Every reader gives one epoch of batches (B, 1, height, W) float32 ink, levelled, 0 = paper, shuffled, lines of similar width together,
B = 32, each line once. The peers decode as their users do, by a bare call of Pillow without our checks of untrusted images,
or all of them by our own call; they get a canvas no slower than ours and a bucketing by width, and read images alone, where
we read ids and texts as well.

Sources: https://github.com/webdataset/webdataset, https://lmdb.readthedocs.io,
https://huggingface.co/docs/datasets/about_mapstyle_vs_iterable
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

BATCH = 32
BUCKETED = 512  # lines that a peer sorts by width at a time
BUFFER = 1000  # lines among which a peer that streams shuffles
TAR_LINES = 4096
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
STEP, MAX_WIDTH = 8, 2048  # px, as in maskocr_core

Pixels = np.ndarray  # (height, W) uint8
Decode = Callable[[bytes], Pixels]
Batches = Iterator[torch.Tensor]


@dataclass(frozen=True)
class Contender:
    """write: keep the lines of raw Parquet files in a folder. read: (folder, decode, seed) → an epoch; all is open when it returns."""

    title: str
    read: Callable[[Path, Decode, int], Batches]
    write: Callable[[list[Path], Path], None] | None = None
    package: str | None = None  # that has to be installed


def by_pillow(image: bytes, height: int) -> Pixels:
    """The least that it takes to decode a line: Pillow to mode L, scaled as training scales it where it is not `height` px."""
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        return _scaled(np.asarray(opened.convert("L")), height)


def by_opencv(image: bytes, height: int) -> Pixels:
    """The same by OpenCV."""
    return _scaled(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE), height)


def by_us(image: bytes, height: int) -> Pixels:
    """What training calls: checked, on white where it is transparent, any depth."""
    from maskocr_core.data import images

    return images.prepare(image, height, MAX_WIDTH)


def _scaled(pixels: Pixels, height: int) -> Pixels:
    if pixels.shape[0] != height:
        width = max(STEP, round(pixels.shape[1] * height / pixels.shape[0]))
        shrinks = height < pixels.shape[0]
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return pixels[:, :MAX_WIDTH]


def batches(lines: Iterable[Pixels]) -> Batches:
    """Decoded lines, sorted by width some hundreds at a time, as padded batches."""
    source = iter(lines)
    while window := list(islice(source, BUCKETED)):
        window.sort(key=lambda pixels: pixels.shape[1])
        for begin in range(0, len(window), BATCH):
            yield _canvas(window[begin : begin + BATCH])


def _canvas(lines: list[Pixels]) -> torch.Tensor:
    from maskocr_core.data import images
    from maskocr_core.data.batches import PAD_TO

    width = max(pixels.shape[1] for pixels in lines)
    ink = np.empty((len(lines), 1, lines[0].shape[0], width + -width % PAD_TO), np.float32)
    for number, pixels in enumerate(lines):
        images.inked(pixels, "levelled", ink[number, 0, :, : pixels.shape[1]])
        ink[number, 0, :, pixels.shape[1] :] = 0
    return torch.from_numpy(ink)


def raw_lines(files: list[Path]) -> Iterator[tuple[bytes, str]]:
    """(encoded image, text or "") of raw Parquet files, some hundreds in memory at a time."""
    for path in files:
        for rows in pq.ParquetFile(path).iter_batches(BUCKETED, columns=["image", "text"]):
            for image, text in zip(rows["image"].to_pylist(), rows["text"].to_pylist()):
                yield image, text or ""


# The limits: nothing but decoding, the bytes in memory already; Parquet read and written by pyarrow alone.


def read_decoded(folder: Path, decode: Decode, seed: int) -> Iterator[Pixels]:
    return map(decode, [image for image, _ in raw_lines(sorted(folder.glob("*.parquet")))])


def write_copy(files: list[Path], folder: Path) -> None:
    for path in files:
        file = pq.ParquetFile(path)
        settings = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(folder / path.name, file.schema_arrow, **settings) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))


# Loose files and a PyTorch Dataset.


class _Files(Dataset):
    def __init__(self, folder: Path, decode: Decode):
        self.paths = sorted(str(path) for path in folder.iterdir() if path.suffix != ".txt")
        self.decode = decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Pixels:
        with open(self.paths[number], "rb") as file:
            return self.decode(file.read())


def write_files(files: list[Path], folder: Path) -> None:
    for number, (image, text) in enumerate(raw_lines(files)):
        (folder / f"{number:07d}.{suffix(image)}").write_bytes(image)
        if text:
            (folder / f"{number:07d}.gt.txt").write_text(text)


def read_files(folder: Path, decode: Decode, seed: int) -> Batches:
    return batches(_loaded(_Files(folder, decode), seed))


# WebDataset: tar files, read in sequence, shuffled in a buffer.


def write_tar(files: list[Path], folder: Path) -> None:
    from webdataset import ShardWriter

    with ShardWriter(f"{folder}/%06d.tar", maxcount=TAR_LINES, verbose=0) as writer:
        for number, (image, text) in enumerate(raw_lines(files)):
            label = {"txt": text} if text else {}
            writer.write({"__key__": f"{number:07d}", suffix(image): image, **label})


def read_tar(folder: Path, decode: Decode, seed: int) -> Batches:
    import webdataset

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=seed).shuffle(BUFFER, initial=BUFFER)
    dataset = dataset.to_tuple("webp;png;jpeg;tiff").map(lambda sample: decode(sample[0]))
    # Without a collate function of its own the loader would turn each line into a tensor.
    return batches(DataLoader(dataset, batch_size=None, collate_fn=lambda pixels: pixels, num_workers=0))


# LMDB with the keys that text recognition has used since CRNN, and a PyTorch Dataset.


class _Lmdb(Dataset):
    def __init__(self, folder: Path, decode: Decode):
        import lmdb

        self.environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
        self.transaction = self.environment.begin()
        self.count, self.decode = int(self.transaction.get(b"num-samples")), decode

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Pixels:
        return self.decode(self.transaction.get(b"image-%09d" % (number + 1)))


def write_lmdb(files: list[Path], folder: Path) -> None:
    import lmdb

    source, count = raw_lines(files), 0
    with lmdb.open(str(folder), map_size=1 << 36) as environment:
        while window := list(islice(source, BUFFER)):
            with environment.begin(write=True) as transaction:
                for image, text in window:
                    count += 1
                    transaction.put(b"image-%09d" % count, image)
                    transaction.put(b"label-%09d" % count, text.encode())
                transaction.put(b"num-samples", b"%d" % count)


def read_lmdb(folder: Path, decode: Decode, seed: int) -> Batches:
    return batches(_loaded(_Lmdb(folder, decode), seed))


# Hugging Face datasets: Parquet turned into mapped Arrow files and read at random, or streamed as it is.


class _Arrow(Dataset):
    def __init__(self, folder: Path, decode: Decode):
        import datasets

        self.kept, self.decode = datasets.load_from_disk(str(folder)).select_columns(["image"]), decode

    def __len__(self) -> int:
        return len(self.kept)

    def __getitems__(self, numbers: list[int]) -> list[Pixels]:
        return [self.decode(image) for image in self.kept[numbers]["image"]]


def write_arrow(files: list[Path], folder: Path) -> None:
    import datasets

    names, cache = [str(path) for path in files], folder.with_name(f"{folder.name}.cache")
    datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=str(cache)).save_to_disk(str(folder))


def read_arrow(folder: Path, decode: Decode, seed: int) -> Batches:
    return batches(_loaded(_Arrow(folder, decode), seed))


def read_streamed(folder: Path, decode: Decode, seed: int) -> Batches:
    import datasets

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # five idle seconds after each epoch would hide all else
    names = sorted(str(path) for path in folder.glob("*.parquet"))
    stream = datasets.load_dataset("parquet", data_files=names, split="train", streaming=True, columns=["image"])
    return batches(decode(row["image"]) for row in stream.shuffle(seed=seed, buffer_size=BUFFER))


# Ours: what pre-training reads.


def read_ours(folder: Path, decode: Decode, seed: int) -> Batches:
    """`folder` holds the artifacts `lines` and `selection`; of `decode` only the height counts."""
    from maskocr_core.artifacts import Artifact
    from maskocr_core.config import Data
    from maskocr_core.data import batches as ours

    data = Data(height=decode.keywords["height"])
    source = ours.Stream(Artifact(folder / "lines"), Artifact(folder / "selection"), "unlabeled", data)
    return _an_epoch(ours.training(source, batch=BATCH, seed=seed), len(source))


def select_all(folder: Path) -> None:
    """Write `folder/selection`, which admits every unlabelled line of `folder/lines` with weight 1."""
    from maskocr_core import artifacts
    from maskocr_core.data import lines

    artifact = artifacts.Artifact(folder / "lines")
    for shard in lines.shards(artifact, "unlabeled"):
        ids = lines.index_of(artifact, shard, ["line_id"])["line_id"]
        weights = pa.array(np.ones(len(ids), np.float32))
        lines.write(pa.table([ids, weights], schema=lines.SELECTION), folder / "selection" / shard)
    artifacts.finish(folder / "selection", kind="selection", config={}, metrics={})


def _an_epoch(endless: Iterator, count: int) -> Batches:
    read = 0
    while read < count:
        batch = next(endless)
        read += len(batch.line_ids)
        yield batch.ink


def _loaded(dataset: Dataset, seed: int) -> Iterator[Pixels]:
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=BUCKETED, shuffle=True, generator=generator, collate_fn=list, num_workers=0)
    for window in loader:
        yield from window


def suffix(image: bytes) -> str:
    """What a file with these bytes is called: webp, png, jpeg or tiff."""
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        return opened.format.lower()


def decoder(name: str, height: int) -> Decode:
    return partial({"pillow": by_pillow, "opencv": by_opencv, "maskocr": by_us}[name], height=height)


LIMIT, OURS = "decode", "maskocr"
CONTENDERS = {
    LIMIT: Contender("decoding alone, bytes in memory", read_decoded, write_copy),
    OURS: Contender("maskocr", read_ours),
    "files": Contender("loose files, PyTorch Dataset", read_files, write_files),
    "webdataset": Contender("WebDataset tar", read_tar, write_tar, "webdataset"),
    "lmdb": Contender("LMDB, PyTorch Dataset", read_lmdb, write_lmdb, "lmdb"),
    "arrow": Contender("Hugging Face datasets, map style", read_arrow, write_arrow, "datasets"),
    "streamed": Contender("Hugging Face datasets, streamed Parquet", read_streamed, None, "datasets"),
}
