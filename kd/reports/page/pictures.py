"""Figures inside the page: drawings with values to point at, and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

from kd.reports.page.hover import PREFIX
from kd.reports.page.markup import Html, anchor, tag

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
LARGE = 600_000  # bytes of a picture above which it is stored smaller
WIDTH = 1600  # pixels of such a picture, at most


def framed(name: str, title: str, caption: str, folder: Path, drawing: bool) -> Html | None:
    """Return a figure of the folder `figures` with its caption and links to its files; None where it is not there.

    drawing: shown as lines with values, else as a picture.
    """
    files = {ending: folder / f"figures/{name}.{ending}" for ending in ("svg", "png")}
    if not all(file.is_file() for file in files.values()):
        return None
    shown = inline(files["svg"], title) if drawing else picture(files["png"], title)
    links = [[" ", tag("a", ending.upper(), href=f"figures/{name}.{ending}")] for ending in files]
    said = tag("figcaption", tag("b", f"{title}. "), caption, tag("span", links, class_="files"))
    return tag("figure", tag("div", shown, class_="paper scroll", tabindex="0"), said, id=f"_figure-{anchor(name)}")


def picture(file: Path, title: str) -> Html:
    """Return an image with its bytes inside; a large one is stored smaller, as JPEG."""
    content, kind = file.read_bytes(), "png"
    if len(content) > LARGE:
        content, kind = _smaller(content), "jpeg"
    encoded = base64.b64encode(content).decode()
    return tag("img", src=f"data:image/{kind};base64,{encoded}", alt=title)


def _smaller(content: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDTH, 10 * WIDTH))
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=85, optimize=True)
    return stored.getvalue()


def inline(file: Path, title: str) -> Html:
    """Return an .svg as an element of the page, whose points say their values; ids are those of this figure only."""
    root = ElementTree.parse(file).getroot()
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{SVG}g"):
        if (name := group.get("id", "")).startswith(PREFIX):
            _say(group, json.loads(name.removeprefix(PREFIX)))
    used = set(re.findall(r"#([^\s\"')]+)", ElementTree.tostring(root, encoding="unicode")))
    prefix = f"_{anchor(file.stem)}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib[key]
                if value in used:
                    element.set("id", prefix + value)
            elif "#" in value:
                del element.attrib[key]
                pointed = re.sub(r"(^|url\()#", rf"\1#{prefix}", value)
                element.set(key.removeprefix(XLINK), pointed if key.endswith("href") or "url(" in value else value)
            elif key.startswith(XLINK):
                del element.attrib[key]
                element.set(key.removeprefix(XLINK), value)
    root.attrib |= {"role": "img", "aria-label": title}
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _say(group: ElementTree.Element, values: list[str]) -> None:
    """Write values to the points of a line, or to a bar; nothing where points were left out when they were drawn."""
    points = [element for element in group.iter(f"{SVG}use")] or [group]
    if len(points) == len(values):
        for point, said in zip(points, values, strict=True):
            point.set("data-tip", said)
