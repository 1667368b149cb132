"""Pictures as bytes: for pages that hold all that they show, and for files that must stay small."""

from __future__ import annotations

import base64
import io

from PIL import Image


def encode_jpeg(picture: Image.Image, quality: int = 80) -> bytes:
    """Encode an RGB picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encode_webp(picture: Image.Image, most: int) -> bytes:
    """Encode a picture at the highest quality of 90, 80, … 10 that takes no more than `most` bytes; or at the last."""
    found = b""
    for quality in range(90, 0, -10):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        found = buffer.getvalue()
        if len(found) <= most:
            break
    return found


def data_uri(encoded: bytes, kind: str = "jpeg") -> str:
    """Return an encoded picture as a data URI of ``image/{kind}``."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
