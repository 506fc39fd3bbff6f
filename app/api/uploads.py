"""Raw-body uploads: counted, hashed, capped and looked at by their first bytes; nothing is parsed here."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fastapi import Request

from app.actions import Service
from app.problems import Problem
from app.store.blobs import BlobWriter

HINT = (
    "Export the network first, in a format that cannot execute code:\n"
    "    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim('batch')},))\n"
    "    torch.export.save(program, 'model.pt2')    # or torch.onnx.export(model, (example,), 'model.onnx')"
)
MIN_BYTES = 16
_ONNX_TAGS = b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72"  # the first byte of a serialised ModelProto: one of its fields
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_KNOWN = {b"\x89HDF": "HDF5 (Keras)", b"GGUF": "GGUF", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


async def receive(request: Request, service: Service, what: str) -> tuple[str, int, str]:
    """Store a request's body as a blob; return (sha256, bytes, format by content: onnx, pt2, npz, safetensors)."""
    declared = _length(request, service)
    with service.blobs.writer() as writer:
        head = await _drain(request, writer, declared)
        found = _format(head, writer, what)
        _check_digest(request, writer.sha256)
        return writer.commit(), declared, found


def _length(request: Request, service: Service) -> int:
    text = request.headers.get("content-length")
    if text is None or not text.isdigit():
        raise Problem("length-required", "an upload needs a Content-Length")
    declared = int(text)
    if declared > service.settings.max_upload_bytes:
        raise Problem("upload-too-large", f"{declared} bytes; at most {service.settings.max_upload_bytes}")
    if service.blobs.free_bytes() - declared < service.settings.disk_floor_bytes:
        raise Problem("insufficient-storage", "the disk is nearly full")
    return declared


async def _drain(request: Request, writer: BlobWriter, declared: int) -> bytes:
    head = b""
    async for chunk in request.stream():
        if len(head) < 512:
            head += chunk[: 512 - len(head)]
        writer.write(chunk)
        if writer.bytes > declared:
            raise Problem("incomplete-upload", "more bytes than declared")
    if writer.bytes != declared:
        raise Problem("incomplete-upload", f"{writer.bytes} of {declared} bytes came")
    return head


def _format(head: bytes, writer: BlobWriter, what: str) -> str:
    """Tell formats apart by leading bytes and, for a zip, by the names in its directory."""
    if writer.bytes < MIN_BYTES:
        raise Problem("unrecognised-format", f"{writer.bytes} bytes are no {what}")
    if head[:2] in _PICKLES:
        raise Problem("unsafe-format", f"a pickle stream. {HINT}")
    for start, name in _KNOWN.items():
        if head.startswith(start):
            raise Problem("unsupported-format", f"the file is {name}. {HINT}")
    if head.startswith(b"PK"):
        return _zip_format(writer.peek(), what)
    if head[257:262] == b"ustar":
        raise Problem("unsafe-format", f"a tar archive, as old checkpoints are. {HINT}")
    if what == "dataset" and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= writer.bytes - 8:
        return "safetensors"
    if what != "dataset" and head[0] in _ONNX_TAGS:
        return "onnx"
    raise Problem("unrecognised-format", f"the content is no {what}. {HINT if what != 'dataset' else ''}".rstrip())


def _zip_format(path: Path, what: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise Problem("invalid-archive", f"a broken zip archive: {error}") from error
    if any(name.endswith("models/model.json") for name in names):
        return "pt2"
    if any(name.endswith(("data.pkl", "constants.pkl")) or "/code/" in name for name in names):
        raise Problem("unsafe-format", f"a pickled checkpoint or TorchScript archive. {HINT}")
    if what == "dataset" and any(name.endswith(".npy") for name in names):
        return "npz"
    raise Problem("unrecognised-format", f"a zip archive that is no {what}. {HINT}")


def _check_digest(request: Request, sha256: str) -> None:
    """Hold the bytes against a `Content-Digest: sha-256=:...:` header, where there is one.

    Called before the file gets its name: one with the same content may be in use under it already.
    """
    import base64

    header = request.headers.get("content-digest", "")
    if not header.startswith("sha-256=:"):
        return
    wanted = header.removeprefix("sha-256=:").rstrip(":")
    if base64.b64encode(bytes.fromhex(sha256)).decode() != wanted:
        raise Problem("digest-mismatch", "the bytes are not those the Content-Digest names")
