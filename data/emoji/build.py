#!/usr/bin/env python3
"""Build the four-style emoji data set of this folder.

The same emoji is drawn by four design teams: Noto (Google), Twemoji (Twitter),
OpenMoji (HfG Schwaebisch Gmuend) and Fluent 3D (Microsoft).  This script

1. fetches four pinned npm packages with ``npm pack`` (or takes the tarballs from
   ``--tarballs DIR``) and checks each against the SHA-256 written below;
2. keeps the emoji drawn in all four styles, without flags, skin tones and components;
3. crops, scales and centres each drawing in a 64 x 64 transparent tile;
4. writes one WebP atlas per style, the table ``emoji.csv``, ``contact_sheet.png``, the
   licence texts shipped in the packages, the counts inside ``README.md`` and
   ``checksums.json``.

Tile ``i`` of every atlas (row-major, 40 columns) belongs to row ``i`` of the table.

    python data/emoji/build.py                    # fetch and build
    python data/emoji/build.py --tarballs DIR     # build from tarballs at hand
    python data/emoji/build.py --check            # verify the files here, build nothing

Building needs pillow, numpy, tqdm and resvg-py; ``--check`` needs the standard library only.
The same versions of Pillow and resvg-py give the same bytes on every run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

HERE = Path(__file__).resolve().parent

TILE = 64  #: tile side in pixels
COLUMNS = 40  #: tiles per atlas row
GLYPH = 58  #: longest side of a normalised drawing, in pixels
SVG_RENDER = 576  #: side at which OpenMoji SVGs are rasterised before they are scaled down
ALPHA_FLOOR = 8  #: alpha up to this value counts as empty when a drawing is cropped
SMALL = 0.9  #: below this share of the usual size in ALL styles, a drawing stays small
COLOUR_STEPS = (1, 4, 8)  #: colours are rounded to multiples of the first step that fits
ATLAS_LIMIT = 4_200_000  #: bytes an atlas may take in the quick trial encoding

STYLES = ("noto", "twemoji", "openmoji", "fluent")
COLUMN_NAMES = ("code", "name", "subgroup", "group", "keywords", "concept")


@dataclass(frozen=True)
class Package:
    """One pinned npm package: its spec, the tarball ``npm pack`` makes, and its digest."""

    spec: str
    tarball: str
    sha256: str


PACKAGES: dict[str, Package] = {
    "noto": Package(
        "emoji-datasource-google@16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter@16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "openmoji": Package(
        "openmoji@17.0.0",
        "openmoji-17.0.0.tgz",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
}

#: licence texts copied out of the tarballs: style -> (member, file name under LICENSES/)
SHIPPED_LICENSES: dict[str, tuple[str, str]] = {
    "noto": ("package/LICENSE", "emoji-datasource-google-MIT.txt"),
    "twemoji": ("package/LICENSE", "emoji-datasource-twitter-MIT.txt"),
    "openmoji": ("package/LICENSE.txt", "openmoji-CC-BY-SA-4.0.txt"),
}

# --------------------------------------------------------------------------- concepts

VS16, ZWJ = "fe0f", "200d"
MAN, WOMAN, PERSON = "1f468", "1f469", "1f9d1"
HAIR = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
FAMILY_MEMBERS = {MAN, WOMAN, PERSON, "1f466", "1f467", "1f9d2"}

#: Families of near-identical drawings that the structure of the code does not tell.  The
#: first code of each is the one whose name becomes the concept.  Besides people these are
#: drawings that differ by a mirror, a turn, the size alone, or the hands of a clock.
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("1f9d1", "1f468", "1f469", "1f471", "1f9d4"),  # adults; blond, bearded
    ("1f9d2", "1f466", "1f467"),  # child, boy, girl
    ("1f9d3", "1f474", "1f475"),  # older person, old man, old woman
    ("1fac5", "1f934", "1f478"),  # person with crown, prince, princess
    ("1fac4", "1f930", "1fac3"),  # pregnant person, woman, man
    ("1f9d1-200d-1f37c", "1f931"),  # person feeding baby, breast-feeding
    ("1f9d1-200d-1f384", "1f385", "1f936"),  # Mx, Santa and Mrs. Claus
    ("1f483", "1f57a"),  # woman and man dancing
    ("1f9d1-200d-1f91d-200d-1f9d1", "1f46b", "1f46c", "1f46d"),  # people holding hands
    ("270b", "1f91a"),  # raised hand, raised back of hand
    ("1faf1", "1faf2"),  # rightwards and leftwards hand
    ("1faf8", "1faf7"),  # rightwards and leftwards pushing hand
    ("1f91c", "1f91b"),  # right-facing and left-facing fist
    ("1f449", "1f448", "1f446", "1f447"),  # backhand index pointing right, left, up, down
    ("1f50d", "1f50e"),  # magnifying glass tilted left and right
    ("1f312", "1f318"),  # waxing and waning crescent moon
    ("1f313", "1f317"),  # first and last quarter moon
    ("1f314", "1f316"),  # waxing and waning gibbous moon
    ("1f31b", "1f31c"),  # first and last quarter moon face
    ("1f55b", *(f"{code:x}" for code in range(0x1F550, 0x1F568) if code != 0x1F55B)),  # clocks
    ("27a1", "2b05", "2b06", "2b07", "2196", "2197", "2198", "2199"),  # straight arrows
    ("2194", "2195"),  # left-right and up-down arrow
    ("21aa", "21a9"),  # left arrow curving right, right arrow curving left
    ("2934", "2935"),  # right arrow curving up, down
    ("25b6", "25c0", "1f53c", "1f53d"),  # play, reverse, upwards and downwards button
    ("23e9", "23ea", "23eb", "23ec"),  # fast-forward, fast reverse, fast up, fast down
    ("23ed", "23ee"),  # next and last track button
    ("1f53a", "1f53b"),  # red triangle pointed up, down
    ("2b1b", "25fc", "25fe", "25aa"),  # black squares by size
    ("2b1c", "25fb", "25fd", "25ab"),  # white squares by size
    ("1f536", "1f538"),  # large and small orange diamond
    ("1f537", "1f539"),  # large and small blue diamond
)


def strip_vs16(code: str) -> str:
    """Lower-case ``code`` without the emoji variation selector, which files omit at will."""
    return "-".join(part for part in code.lower().split("-") if part != VS16)


def concept_code(code: str) -> str:
    """Return the code that stands for every near-duplicate drawing of ``code``.

    Facing-right marks, gender signs, hair and the sex of an adult are dropped; couples and
    families become one couple or family; ``FAMILIES`` settles the rest.
    """
    parts = strip_vs16(code).split("-")
    if parts[-2:] == [ZWJ, "27a1"]:  # "facing right"
        parts = parts[:-2]
    if len(parts) > 2 and parts[-1] in ("2640", "2642"):  # female and male sign
        parts = parts[:-2]
    if len(parts) > 1 and set(parts) - {ZWJ} <= FAMILY_MEMBERS:
        parts = ["1f46a"]
    elif len(parts) > 2 and parts[0] in (MAN, WOMAN, PERSON):
        if parts[2] == "2764":  # heart: couple, or kiss where the kiss mark follows
            parts = ["1f48f" if "1f48b" in parts else "1f491"]
        elif parts[2] in HAIR:
            parts = [PERSON]
        else:
            parts = [PERSON, *parts[1:]]
    plain = "-".join(parts)
    return next((family[0] for family in FAMILIES if plain in family), plain)


def slug(text: str) -> str:
    """``text`` as lower-case ASCII words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("'", ""))
    return re.sub(r"\W+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


# ------------------------------------------------------------------------------ table


@dataclass(frozen=True)
class Row:
    """One emoji: the table's columns, and where each style keeps its drawing."""

    code: str
    name: str
    subgroup: str
    group: str
    keywords: tuple[str, ...]
    concept: str
    members: dict[str, str]  #: style -> member of that style's tarball


def plain_quotes(text: str) -> str:
    """``text`` with typographic quotes made plain."""
    return text.translate(str.maketrans("\u2018\u2019\u201c\u201d", "''\"\""))


def keywords_of(name: str, tags: str, short_names: Iterable[str]) -> tuple[str, ...]:
    """CLDR keywords, then short names, in lower case, each once and none equal to ``name``."""
    words = [plain_quotes(tag.strip().lower()) for tag in tags.split(",")]
    words += [short.replace("_", " ").lower() for short in short_names]
    kept = dict.fromkeys(word.replace(";", ",") for word in words if word and word != name)
    return tuple(kept)


def read_table(archives: dict[str, Archive]) -> list[Row]:
    """Every emoji drawn in all four styles, in Unicode order."""
    entries: list[dict[str, Any]] = json.loads(archives["noto"].read("package/emoji.json"))
    described = {
        strip_vs16(entry["hexcode"]): entry
        for entry in json.loads(archives["openmoji"].read("package/data/openmoji.json"))
    }
    fluent = archives["fluent"].by_code("package/assets/", ".webp")
    openmoji = archives["openmoji"].by_code("package/color/svg/", ".svg")

    found: list[tuple[str, dict[str, Any], dict[str, str]]] = []
    for entry in sorted(entries, key=lambda item: int(item["sort_order"])):
        if entry["category"] in ("Flags", "Component"):
            continue
        code = strip_vs16(entry["unified"])
        members = {
            "noto": f"package/img/google/64/{entry['image']}",
            "twemoji": f"package/img/twitter/64/{entry['image']}",
            "openmoji": openmoji.get(code, ""),
            "fluent": fluent.get(code, ""),
        }
        present = all(members[style] in archives[style].files for style in STYLES)
        if present and entry["has_img_google"] and entry["has_img_twitter"] and code in described:
            found.append((code, entry, members))

    # A concept is called after its standing code; two concepts with one slug get the code too.
    names = {code: plain_quotes(entry["annotation"].lower()) for code, entry in described.items()}
    standing = {concept_code(code) for code, _, _ in found}
    uses = Counter(slug(names[code]) for code in standing)
    concepts = {
        code: slug(names[code]) if uses[slug(names[code])] == 1 else f"{slug(names[code])}-{code}" for code in standing
    }
    return [
        Row(
            code=code,
            name=names[code],
            subgroup=slug(entry["subcategory"]),
            group=slug(entry["category"]),
            keywords=keywords_of(names[code], described[code]["tags"], entry["short_names"]),
            concept=concepts[concept_code(code)],
            members=members,
        )
        for code, entry, members in found
    ]


def table_bytes(rows: Sequence[Row]) -> bytes:
    """``emoji.csv``: UTF-8, one header line, Unix line ends."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMN_NAMES)
    for row in rows:
        words = ";".join(row.keywords)
        writer.writerow((row.code, row.name, row.subgroup, row.group, words, row.concept))
    return out.getvalue().encode("utf-8")


# --------------------------------------------------------------------------- archives


class Archive:
    """A package tarball, read member by member into memory."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        """Read the members of ``path`` whose names start with one of ``wanted``."""
        self.files: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and member.name.startswith(tuple(wanted)):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    self.files[member.name] = handle.read()

    def read(self, member: str) -> bytes:
        """Read the bytes of ``member``."""
        return self.files[member]

    def by_code(self, folder: str, suffix: str) -> dict[str, str]:
        """Emoji code without variation selectors -> member, for the files in ``folder``."""
        return {
            strip_vs16(name.removeprefix(folder).removesuffix(suffix)): name
            for name in sorted(self.files)
            if name.startswith(folder) and name.endswith(suffix)
        }


WANTED: dict[str, tuple[str, ...]] = {
    "noto": ("package/emoji.json", "package/LICENSE", "package/img/google/64/"),
    "twemoji": ("package/LICENSE", "package/img/twitter/64/"),
    "openmoji": ("package/data/openmoji.json", "package/LICENSE.txt", "package/color/svg/"),
    "fluent": ("package/assets/",),
}


def open_packages(folder: Path) -> dict[str, Archive]:
    """Check the four tarballs in ``folder`` against their digests and read them."""
    archives = {}
    for style, package in PACKAGES.items():
        path = folder / package.tarball
        if not path.is_file():
            sys.exit(f"{package.tarball} is not in {folder}")
        if sha256(path.read_bytes()) != package.sha256:
            sys.exit(f"{package.tarball}: the SHA-256 is not the pinned one")
        print(f"reading {package.tarball}")
        archives[style] = Archive(path, WANTED[style])
    return archives


def fetch_packages(folder: Path) -> None:
    """Download the four tarballs into ``folder`` with ``npm pack``."""
    for package in PACKAGES.values():
        print(f"npm pack {package.spec}")
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package.spec]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ------------------------------------------------------------------------------ tiles


def decode(style: str, data: bytes) -> Image.Image:
    """Draw what is in ``data`` as an RGBA picture; OpenMoji's SVG is rasterised large."""
    from PIL import Image

    if style == "openmoji":
        import resvg_py

        data = bytes(
            resvg_py.svg_to_bytes(
                svg_string=data.decode("utf-8"),
                width=SVG_RENDER,
                height=SVG_RENDER,
                skip_system_fonts=True,  # the drawings hold no text: fonts must not matter
            )
        )
    return Image.open(io.BytesIO(data)).convert("RGBA")


def crop(picture: Image.Image) -> tuple[Image.Image | None, float]:
    """``picture`` cut to its visible part, and that part's longest side over the canvas's.

    A picture with nothing visible gives ``(None, 0.0)``.
    """
    alpha = picture.getchannel("A").point([255 * (value > ALPHA_FLOOR) for value in range(256)])
    box = alpha.getbbox()
    if box is None:
        return None, 0.0
    cut = picture.crop(box)
    return cut, max(cut.size) / max(picture.size)


def target_side(extents: Sequence[float], usual: Sequence[float]) -> float:
    """Longest side in pixels for one emoji, the same in all four styles.

    ``extents`` are the emoji's relative sizes in the four styles and ``usual`` the medians
    of those styles.  Nearly all emoji get ``GLYPH``.  One that every style draws small (the
    small squares, diamonds and triangles) keeps its mean relative size, so that "black small
    square" and "black large square" stay different pictures.
    """
    ratios = [extent / median for extent, median in zip(extents, usual, strict=True)]
    return GLYPH * statistics.fmean(ratios) if max(ratios) < SMALL else float(GLYPH)


def make_tile(cut: Image.Image, side: float) -> Image.Image:
    """``cut`` scaled (LANCZOS, alpha premultiplied by Pillow) and centred in a tile."""
    from PIL import Image

    scale = side / max(cut.size)
    width, height = (max(1, round(length * scale)) for length in cut.size)
    small = cut.resize((width, height), Image.Resampling.LANCZOS)
    tile = Image.new("RGBA", (TILE, TILE))
    tile.paste(small, ((TILE - width) // 2, (TILE - height) // 2))
    return tile


def make_tiles(rows: Sequence[Row], archives: dict[str, Archive]) -> tuple[list[Row], dict[str, list[Image.Image]]]:
    """Return the rows drawn in every style (empty drawings drop out) and their tiles."""
    from tqdm import tqdm

    kept: list[Row] = []
    cuts: list[list[Image.Image]] = []
    extents: list[list[float]] = []
    for row in tqdm(rows, desc="decoding", unit="emoji"):
        pairs = [crop(decode(style, archives[style].read(row.members[style]))) for style in STYLES]
        pictures = [picture for picture, _ in pairs if picture is not None]
        if len(pictures) < len(STYLES):
            print(f"left out, drawn empty: {row.code} {row.name}")
            continue
        kept.append(row)
        cuts.append(pictures)
        extents.append([extent for _, extent in pairs])

    usual = [statistics.median(column) for column in zip(*extents, strict=True)]
    tiles: dict[str, list[Image.Image]] = {style: [] for style in STYLES}
    for pictures, sizes in zip(cuts, extents, strict=True):
        side = target_side(sizes, usual)
        for style, picture in zip(STYLES, pictures, strict=True):
            tiles[style].append(make_tile(picture, side))
    return kept, tiles


def round_colours(picture: Image.Image, step: int) -> Image.Image:
    """``picture`` with red, green and blue rounded to multiples of ``step`` (or 255).

    Alpha stays exact, and what is wholly transparent is black.
    """
    import numpy as np
    from PIL import Image

    data = np.asarray(picture).astype(np.int16)
    colour, alpha = data[..., :3], data[..., 3:]
    colour = np.minimum((colour + step // 2) // step * step, 255)
    merged = np.concatenate([np.where(alpha > 0, colour, 0), alpha], axis=2)
    return Image.fromarray(merged.astype(np.uint8))


def encode(picture: Image.Image, quality: int, method: int) -> bytes:
    """``picture`` as lossless WebP; higher ``quality`` and ``method`` only pack tighter."""
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=True, exact=True, quality=quality, method=method)
    return out.getvalue()


def atlas_bytes(tiles: Sequence[Image.Image]) -> tuple[bytes, int]:
    """Pack the tiles into one lossless WebP atlas; also returns the colour step it is stored with.

    Ordinary lossy WebP halves the colour resolution, which shows in tiles this small (about
    31 dB PSNR at quality 92).  Rounding the colours and then packing without loss takes the
    same space at an error of at most half a step.
    """
    from PIL import Image

    height = -(-len(tiles) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * TILE, height * TILE))
    for index, tile in enumerate(tiles):
        atlas.paste(tile, (index % COLUMNS * TILE, index // COLUMNS * TILE))
    for step in COLOUR_STEPS[:-1]:
        rounded = round_colours(atlas, step)
        if len(encode(rounded, quality=80, method=4)) <= ATLAS_LIMIT:
            return encode(rounded, quality=100, method=6), step
    step = COLOUR_STEPS[-1]
    return encode(round_colours(atlas, step), quality=100, method=6), step


def contact_sheet_bytes(
    rows: Sequence[Row], tiles: dict[str, list[Image.Image]], bands: int = 2, columns: int = 10
) -> bytes:
    """``contact_sheet.png``: sampled concepts side by side, the four styles below each other."""
    from PIL import Image, ImageDraw, ImageFont

    first = {row.concept: index for index, row in reversed(list(enumerate(rows)))}
    picked = sorted(random.Random(7).sample(sorted(first.values()), bands * columns))
    label, gap = 72, 12
    band_height = len(STYLES) * TILE + gap
    sheet = Image.new("RGB", (label + columns * TILE + gap, bands * band_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for place, index in enumerate(picked):
        band, column = divmod(place, columns)
        for line, style in enumerate(STYLES):
            top = gap + band * band_height + line * TILE
            if column == 0:
                draw.text((gap, top + TILE // 2), style, "black", font, anchor="lm")
            tile = tiles[style][index]
            sheet.paste(tile, (label + column * TILE, top), tile)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


# ---------------------------------------------------------------------------- outputs


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def counts_markdown(rows: Sequence[Row], steps: dict[str, int]) -> str:
    """Write the part of ``README.md`` that depends on the data."""
    subgroups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        subgroups[row.subgroup].append(row)
    concepts = {name: len({row.concept for row in part}) for name, part in subgroups.items()}
    lines = [
        f"{len(rows)} emoji, {len({row.concept for row in rows})} concepts, "
        f"{len(subgroups)} sub-groups, {len({row.group for row in rows})} groups. "
        f"Each sub-group is given as rows/concepts.",
        "",
        "| group | rows | concepts | sub-groups |",
        "|---|---:|---:|---|",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        part = [row for row in rows if row.group == group]
        cells = ", ".join(
            f"{name} {len(subgroups[name])}/{concepts[name]}" for name in dict.fromkeys(row.subgroup for row in part)
        )
        lines.append(f"| {group} | {len(part)} | {len({r.concept for r in part})} | {cells} |")
    lines += ["", "| sub-groups with at least | 16 | 20 | 24 | 32 |", "|---|---:|---:|---:|---:|"]
    sizes = {name: len(part) for name, part in subgroups.items()}
    for what, by_name in (("rows", sizes), ("concepts", concepts)):
        cells = " | ".join(str(sum(n >= k for n in by_name.values())) for k in (16, 20, 24, 32))
        lines.append(f"| {what} | {cells} |")
    kept = ", ".join(f"`{style}.webp` {steps[style]}" for style in STYLES)
    lines += ["", f"Colour step of each atlas (1 = exact): {kept}."]
    return "\n".join(lines)


def write(path: Path, data: bytes) -> None:
    """Write ``data`` where it differs from what is there, and say which happened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    same = path.is_file() and path.read_bytes() == data
    if not same:
        path.write_bytes(data)
    name = path.relative_to(HERE).as_posix()
    print(f"{'unchanged' if same else 'written  '} {name} ({len(data):,} bytes)")


def update_readme(counts: str) -> None:
    """Put ``counts`` between the two markers of ``README.md``."""
    path = HERE / "README.md"
    begin, end = "<!-- counts: written by build.py -->", "<!-- end of counts -->"
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        sys.exit(f"README.md lacks the lines {begin} and {end}")
    write(path, f"{head}{begin}\n\n{counts}\n\n{end}{tail}".encode())


def data_files() -> list[str]:
    """Names of the files that ``checksums.json`` covers."""
    names = ["emoji.csv", "contact_sheet.png", *(f"{style}.webp" for style in STYLES)]
    names += [f"LICENSES/{path.name}" for path in (HERE / "LICENSES").iterdir() if path.is_file()]
    return sorted(names)


def write_checksums() -> None:
    """Write ``checksums.json``."""
    digests = {name: sha256((HERE / name).read_bytes()) for name in data_files()}
    write(HERE / "checksums.json", (json.dumps(digests, indent=2) + "\n").encode())


def check() -> int:
    """Compare the files with ``checksums.json``: 0 where all agree, 1 naming those that do not."""
    digests: dict[str, str] = json.loads((HERE / "checksums.json").read_text(encoding="utf-8"))
    wrong = 0
    for name, digest in digests.items():
        path = HERE / name
        if not path.is_file():
            problem = "missing"
        elif sha256(path.read_bytes()) != digest:
            problem = "checksum differs"
        else:
            continue
        wrong += 1
        print(f"{name}: {problem}", file=sys.stderr)
    print(f"{len(digests) - wrong} of {len(digests)} files as recorded")
    return 1 if wrong else 0


def build(tarballs: Path) -> None:
    """Build every file of this folder from the package tarballs in ``tarballs``."""
    archives = open_packages(tarballs)
    rows, tiles = make_tiles(read_table(archives), archives)
    print("packing the four atlases (some minutes)")
    with ThreadPoolExecutor() as pool:
        packed = dict(zip(STYLES, pool.map(atlas_bytes, tiles.values()), strict=True))
    for style, (data, _) in packed.items():
        write(HERE / f"{style}.webp", data)
    write(HERE / "emoji.csv", table_bytes(rows))
    write(HERE / "contact_sheet.png", contact_sheet_bytes(rows, tiles))
    for style, (member, name) in SHIPPED_LICENSES.items():
        write(HERE / "LICENSES" / name, archives[style].read(member))
    update_readme(counts_markdown(rows, {style: step for style, (_, step) in packed.items()}))
    write_checksums()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Build or verify the four-style emoji data set of this folder.")
    parser.add_argument(
        "--tarballs",
        type=Path,
        metavar="DIR",
        help="folder that already holds the four .tgz files; without it they are fetched with "
        "npm pack into a temporary folder",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="verify the files here against checksums.json and build nothing",
    )
    options = parser.parse_args(arguments)
    if options.check:
        return check()
    if options.tarballs is not None:
        build(options.tarballs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetch_packages(Path(folder))
            build(Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
