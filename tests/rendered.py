"""Line images for tests: sentences of a small vocabulary, set in a free font and aged like a scan. The same seed gives the same bytes."""

import importlib.util
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

Font = Literal["roboto", "caladea", "serif"]

# Package and file of a font, and the one of matplotlib that stands in where the package is not installed.
_FONTS = {
    "roboto": ("font_roboto", "Roboto-Regular.ttf", "DejaVuSans.ttf"),
    "caladea": ("font_caladea", "Caladea-Regular.ttf", "DejaVuSerif.ttf"),
    "serif": ("font_source_serif_pro", "SourceSerifPro-Regular.ttf", "DejaVuSerif.ttf"),
}

_WORDS = """
der die das und ist nicht mit von auf für eine einem wird auch nach bei aus wenn über sich zwischen durch gegen ohne
Jahr Stadt Land Haus Wasser Straße Brücke Kirche Glocke Bürger König Kaiser Gericht Urteil Recht Ordnung Handel Markt
Bauer Müller Schmied Weber Bäcker Richter Schreiber Lehrer Schüler Bruder Schwester Tochter Vater Mutter Kinder Nachbar
Wald Feld Acker Wiese Fluß Ufer Berg Tal Weg Mühle Turm Mauer Garten Brunnen Fenster Tür Dach Keller Stube Küche Ofen
groß klein alt neu früh spät schön weiß schwarz grün rot kalt warm hoch tief lang kurz fromm gerecht heilig
gehen kommen sehen hören sagen schreiben lesen bringen geben nehmen kaufen zahlen wohnen bauen öffnen schließen grüßen
Sprache Wörter Bücher Blätter Brief Zeugnis Geschichte Größe Maß Gewicht Stück Menge Übung Prüfung Äpfel Öl Übel
le la les des une dans avec pour par sans sous entre depuis jusque comme mais donc ainsi leur notre votre chaque
ville maison église rivière chemin forêt château royaume province marché commerce métier ouvrage journal registre
père mère frère sœur enfant évêque prêtre notaire témoin marchand laboureur meunier tailleur écuyer seigneur
année siècle matin soir hiver été saison fête messe prière vérité liberté charité santé beauté bonté façon leçon
grand petit ancien nouveau premier dernier français première dernière présent passé égal entière commune
être avoir faire donner prendre tenir rendre vendre acheter payer écrire signer déclarer reconnaître paraître
terre pré vigne moulin four grange jardin fenêtre pierre bois blé avoine seigle laine étoffe dentelle chanvre
et in ad cum pro per sub inter super contra autem enim ergo quia quod quam sicut tamen semper nunc tunc
dominus rex regina populus civitas ecclesia templum terra mare flumen mons silva ager hortus porta murus via
pater mater frater filius filia magister discipulus medicus miles dux comes servus amicus hospes
liber verbum littera charta lex ius iudex causa pax bellum virtus fides spes caritas gratia gloria memoria
magnus parvus bonus malus novus vetus longus brevis sanctus verus primus ultimus omnis totus solus
dicere facere videre audire legere scribere dare accipere venire ire manere vivere credere scire amare
annus mensis dies hora nox lux umbra ignis aqua aer ventus caelum stella sol luna corpus manus caput oculus
""".split()


def words(seed: int) -> str:
    """A sentence of four to eight words, some 20 to 65 characters, now and then with a comma or a number."""
    random = np.random.default_rng([seed, 1])
    chosen = [_WORDS[index] for index in random.integers(len(_WORDS), size=random.integers(4, 9))]
    if random.random() < 0.3:
        chosen[random.integers(1, len(chosen) - 1)] += ","
    if random.random() < 0.2:
        chosen.append(str(random.integers(1500, 1900)))
    return " ".join([chosen[0][0].upper() + chosen[0][1:], *chosen[1:]]) + "."


def line(text: str, *, font: Font = "roboto", size: int = 32, seed: int = 0, degrade: float = 0.5) -> np.ndarray:
    """`text` as uint8 (H, W), dark on light; `size` px of type in about 1.5 `size` px of height.

    degrade: 0 is clean print, 1 a bad scan that a person still reads.
    """
    return _aged(_ink(text, font, size), np.random.default_rng([seed, 2]), np.random.default_rng([seed, 3]), degrade)


def png(image: np.ndarray) -> bytes:
    """The image as a PNG file; fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def documents(
    folder: Path,
    *,
    documents: int = 10,
    lines: int = 12,
    labelled: bool = True,
    font: Font = "roboto",
    seed: int = 0,
    degrade: float = 0.5,
) -> Path:
    """Write `folder`/<document>/<n>.png, with n.gt.txt beside it if `labelled`; returns `folder`."""
    for document, number, text, image in _lines(documents, lines, font, seed, degrade):
        place = folder / document
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(png(image))
        if labelled:
            (place / f"{number:03}.gt.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def rows(
    *,
    documents: int = 10,
    lines: int = 12,
    split: str = "train",
    source: str = "rendered",
    font: Font = "roboto",
    seed: int = 0,
    degrade: float = 0.5,
) -> list[dict[str, Any]]:
    """The same lines as rows of a pack; in the split `unlabeled` they have no text and no order."""
    labelled = split != "unlabeled"
    return [
        {
            "id": f"{source}/{split}/{document}/{number}",
            "image": png(image),
            "width": image.shape[1],
            "height": image.shape[0],
            "text": text if labelled else None,
            "source": source,
            "page": f"{source}/{split}/{document}/1",
            "doc": f"{source}/{split}/{document}",
            "split": split,
            "order": order if labelled else -1,
            "license": "CC0-1.0",
        }
        for order, (document, number, text, image) in enumerate(_lines(documents, lines, font, seed, degrade))
    ]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as a Parquet file with the columns of a pack of lines; returns `path`."""
    schema = pa.schema(
        {
            "id": pa.string(),
            "image": pa.binary(),
            "width": pa.int32(),
            "height": pa.int32(),
            "text": pa.string(),
            "source": pa.string(),
            "page": pa.string(),
            "doc": pa.string(),
            "split": pa.string(),
            "order": pa.int32(),
            "license": pa.string(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def _lines(
    documents: int, lines: int, font: Font, seed: int, degrade: float
) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """(document, number, text, image): lines of one document share its paper and ink, as they do on a page."""
    for document in range(documents):
        for number in range(lines):
            own = (seed * 1000 + document) * 1000 + number
            text = words(own)
            page, scan = np.random.default_rng([seed, document, 4]), np.random.default_rng([own, 5])
            yield f"document-{document:02}", number, text, _aged(_ink(text, font, 32), page, scan, degrade)


@lru_cache
def _font(name: Font, size: int) -> ImageFont.FreeTypeFont:
    package, file, substitute = _FONTS[name]
    spec = importlib.util.find_spec(package)
    place = Path(spec.origin).parent / "files" / file if spec else None
    if place is None or not place.exists():
        place = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf" / substitute
    # The basic layout gives the same pixels with and without libraqm.
    return ImageFont.truetype(str(place), size, layout_engine=ImageFont.Layout.BASIC)


def _ink(text: str, font: Font, size: int) -> np.ndarray:
    """How much ink lies on each pixel, float32 (H, W) in [0, 1]."""
    type_ = _font(font, size)
    margin = size // 3
    canvas = Image.new("L", (round(type_.getlength(text)) + 2 * margin, round(1.5 * size)), 0)
    ImageDraw.Draw(canvas).text((margin, round(1.1 * size)), text, fill=255, font=type_, anchor="ls")
    return np.asarray(canvas, np.float32) / 255


def _aged(ink: np.ndarray, page: np.random.Generator, scan: np.random.Generator, degrade: float) -> np.ndarray:
    """Ink on paper, as a scanner sees it: `page` decides what a page has in common, `scan` what each line has of its own."""
    height, width = ink.shape
    paper, black = 255 - degrade * page.uniform(10, 80), degrade * page.uniform(10, 90)
    blur, noise, loss = (
        degrade * page.uniform(0.4, 1.4),
        degrade * page.uniform(2, 16),
        degrade * page.uniform(0.1, 0.6),
    )

    slant, skew = degrade * page.uniform(-0.08, 0.08), np.radians(degrade * scan.uniform(-0.6, 0.6))
    # A long line rises by its length: the angle is held to what the white above and below the letters takes up.
    skew = np.clip(skew, -0.08 * height / width, 0.08 * height / width)
    turn = np.array([[1, slant, -slant * height / 2], [skew, 1, -skew * width / 2]], np.float32)
    ink = cv2.warpAffine(ink, turn, (width, height), flags=cv2.INTER_LINEAR)

    # Pressure varies over some letters, and the grain of the paper takes ink here and not there.
    pressure = cv2.resize(
        scan.random((3, max(2, width // 24)), np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grain = cv2.resize(
        scan.random((height // 2, width // 2), np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    ink = ink * (1 - loss * np.clip(pressure, 0, 1)) * (1 - loss * (grain > 0.7))
    if blur > 0:
        ink = cv2.GaussianBlur(ink, (0, 0), blur)

    shade = cv2.resize(scan.standard_normal((2, 4), np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    light = paper + 8 * degrade * shade + noise * scan.standard_normal((height, width), np.float32)
    return np.clip(light - ink * (paper - black), 0, 255).astype(np.uint8)
