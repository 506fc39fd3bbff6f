"""Typed problems (RFC 9457): every refusal has a slug, a status and a documented meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One entry of the catalogue."""

    status: int
    title: str
    meaning: str


PROBLEMS: dict[str, Kind] = {
    "malformed-json": Kind(400, "Malformed JSON", "The body is not UTF-8 JSON, or is nested too deeply."),
    "malformed-yaml": Kind(400, "Malformed YAML", "The body is not UTF-8 YAML that JSON could say, or has anchors."),
    "duplicate-json-key": Kind(400, "Duplicate JSON key", "An object names the same key twice."),
    "invalid-number": Kind(422, "Invalid number", "NaN, infinity or a number too large for a float."),
    "unknown-field": Kind(422, "Unknown field", "A field the request may not have."),
    "invalid-request": Kind(422, "Invalid request", "A field is missing or has the wrong type or value."),
    "body-too-large": Kind(413, "Body too large", "A JSON body is larger than 1 MiB."),
    "unsupported-media-type": Kind(415, "Unsupported media type", "JSON needs Content-Type: application/json."),
    "malformed-request": Kind(400, "Malformed request", "Headers that two readers could read differently."),
    "headers-too-large": Kind(431, "Headers too large", "At most 100 headers in 16 KiB."),
    "misdirected-request": Kind(421, "Misdirected request", "The service does not answer for this Host."),
    "upload-too-slow": Kind(408, "Upload too slow", "A body that comes at less than 8 KiB per second over 30 seconds."),
    "length-required": Kind(411, "Length required", "An upload needs a Content-Length."),
    "upload-too-large": Kind(413, "Upload too large", "The file is larger than the service accepts."),
    "offset-conflict": Kind(
        409, "Offset conflict", "The part begins elsewhere than the upload ends, or another comes in."
    ),
    "checksum-mismatch": Kind(460, "Checksum mismatch", "The part is not the one that Upload-Checksum names."),
    "upload-expired": Kind(410, "Upload expired", "A resumable upload is finished within 24 hours."),
    "unsupported-tus-version": Kind(412, "Unsupported tus version", "Resumable uploads speak tus 1.0.0."),
    "incomplete-upload": Kind(400, "Incomplete upload", "The connection ended before the declared length."),
    "insufficient-storage": Kind(507, "Insufficient storage", "The disk is nearly full; reads and cancels still work."),
    "digest-mismatch": Kind(422, "Digest mismatch", "The bytes are not those the digest header names."),
    "unauthenticated": Kind(401, "Unauthenticated", "No valid API key: unknown, revoked and expired keys look alike."),
    "too-many-attempts": Kind(429, "Too many attempts", "Too many wrong keys from one address; wait a minute."),
    "too-many-requests": Kind(
        429, "Too many requests", "The key's requests come too fast; Retry-After says how long to wait."
    ),
    "missing-scope": Kind(403, "Missing scope", "The key lacks the scope that this needs."),
    "cross-site-request": Kind(403, "Cross-site request", "A form of another site can't act here."),
    "not-found": Kind(404, "Not found", "There is nothing under this address or id."),
    "method-not-allowed": Kind(405, "Method not allowed", "The address does not take this method."),
    "invalid-cursor": Kind(400, "Invalid cursor", "The paging cursor is not one of ours."),
    "invalid-limit": Kind(422, "Invalid limit", "Page sizes go from 1 to 200."),
    "invalid-name": Kind(422, "Invalid name", "Names have 1 to 200 printable characters."),
    "request-in-progress": Kind(409, "Request in progress", "The first request under this key is still under way."),
    "too-many-streams": Kind(429, "Too many streams", "Too many event streams are open; close one."),
    "quota-exceeded": Kind(409, "Quota exceeded", "More than the service keeps or runs; `used` and `limit` say what."),
    "idempotency-key-reused": Kind(422, "Idempotency key reused", "The key came with another body before."),
    "precondition-required": Kind(428, "Precondition required", "A change needs If-Match with the ETag last seen."),
    "stale-etag": Kind(412, "Stale ETag", "The resource has changed since the ETag in If-Match."),
    "range-not-satisfiable": Kind(416, "Range not satisfiable", "The file ends before the range begins."),
    "in-use": Kind(409, "In use", "A search or a weights version needs this."),
    "unsafe-format": Kind(
        422, "Unsafe format", "Pickle, TorchScript and their like can execute code; they are refused."
    ),
    "unrecognised-format": Kind(422, "Unrecognised format", "The content is no format tightfit reads."),
    "unsupported-format": Kind(422, "Unsupported format", "A format tightfit knows but does not read."),
    "invalid-archive": Kind(422, "Invalid archive", "A zip archive that breaks the zip laws."),
    "compressed-entry": Kind(422, "Compressed entry", "torch.export stores entries uncompressed; others are refused."),
    "overlapping-entries": Kind(422, "Overlapping entries", "Two zip entries share bytes."),
    "invalid-onnx": Kind(422, "Invalid ONNX", "The file is not a readable ONNX model."),
    "trailing-data": Kind(422, "Trailing data", "Bytes lie before, between or behind what the format declares."),
    "external-data-refused": Kind(422, "External data refused", "ONNX weights must be inside the file."),
    "unsupported-operator": Kind(422, "Unsupported operator", "The network uses operators that are not read yet."),
    "invalid-graph": Kind(422, "Invalid graph", "The network's graph is inconsistent."),
    "invalid-tensor": Kind(422, "Invalid tensor", "A stored tensor lies about its size, type or layout."),
    "dynamic-shape-unsupported": Kind(422, "Dynamic shape unsupported", "Only the batch dimension may vary."),
    "model-too-large": Kind(422, "Model too large", "More nodes or parameters than the reader accepts."),
    "nothing-to-compress": Kind(422, "Nothing to compress", "The network has no convolution or linear layer."),
    "weights-mismatch": Kind(422, "Weights mismatch", "New weights that are not, name by name, those of the network."),
    "inspection-failed": Kind(422, "Inspection failed", "The sandboxed reader died on this file."),
    "invalid-dataset": Kind(422, "Invalid dataset", "Wrong shape, type, labels, or rows that are not finite."),
    "invalid-safetensors": Kind(422, "Invalid safetensors", "The header is broken or lies about the tensors."),
    "header-too-large": Kind(422, "Header too large", "A safetensors header is larger than 8 MiB."),
    "too-many-tensors": Kind(422, "Too many tensors", "A safetensors file names more than 20,000 tensors."),
    "duplicate-tensor": Kind(422, "Duplicate tensor", "A safetensors file names the same tensor twice."),
    "dataset-too-large": Kind(422, "Dataset too large", "The dataset expands to more than the cap."),
    "calibration-required": Kind(
        422, "Calibration required", "A role has no dataset, or a search without data has inputs that are ids."
    ),
    "invalid-device-profile": Kind(422, "Invalid device profile", "The profile has illegal or missing fields."),
    "device-not-measurable": Kind(
        422,
        "Device not measurable",
        "Measured evidence for a device that is neither the workers' machine nor an agent's.",
    ),
    "metric-not-measurable": Kind(
        422, "Metric not measurable", "The metric suits neither the network's outputs nor the data's labels."
    ),
    "latency-not-measured": Kind(409, "Latency not measured", "The reference files could not be timed on the device."),
    "not-enough-measurements": Kind(409, "Not enough measurements", "A refit needs five measured latencies or more."),
    "invalid-budget": Kind(422, "Invalid budget", "No limit, or a limit that is not a positive figure."),
    "budget-unreachable": Kind(
        422, "Budget unreachable", "No legal assignment keeps the limits; `nearest` says which could be kept."
    ),
    "invalid-search-space": Kind(422, "Invalid search space", "The space leaves a layer without a legal choice."),
    "search-space-too-large": Kind(422, "Search space too large", "More layers than one search handles."),
    "invalid-method-params": Kind(
        422, "Invalid method parameters", "A method that there is not, or parameters that are another's, or illegal."
    ),
    "invalid-limits": Kind(422, "Invalid limits", "Trials or time outside what the service allows."),
    "model-not-ready": Kind(409, "Model not ready", "The model is still being read, or was rejected."),
    "non-finite-weights": Kind(409, "Non-finite weights", "Weights are NaN or infinite, and so are the outputs."),
    "dataset-not-ready": Kind(409, "Dataset not ready", "The dataset is still being read, or was rejected."),
    "already-finished": Kind(409, "Already finished", "The search has ended."),
    "opset-too-low": Kind(
        422, "Opset too low", "The ONNX opset can't hold these bit-widths; the lowest that can is named."
    ),
    "export-running": Kind(409, "Export running", "An export of this candidate is under way."),
    "invalid-schedule": Kind(422, "Invalid schedule", "The cron expression or time zone is not valid."),
    "blob-corrupt": Kind(500, "Blob corrupt", "A stored file changed; it is not used."),
    "read-only": Kind(503, "Read-only", "The database can be read and not written; reads still work."),
    "busy": Kind(503, "Busy", "The database is locked; try again."),
    "internal-error": Kind(500, "Internal error", "A fault of the service; the log has the request id."),
    "baseline-invalid": Kind(409, "Baseline invalid", "The float network can't be measured on the evaluation set."),
    "baseline-not-finite": Kind(409, "Baseline not finite", "The float network answers rows with NaN or infinity."),
    "constant-outputs": Kind(409, "Constant outputs", "The float network gives every row the same answer."),
    "processor-unavailable": Kind(
        409, "Processor unavailable", "The worker lacks the kind of processor that the search's trials ran on."
    ),
    "trials-keep-failing": Kind(409, "Trials keep failing", "Three trials in a row ended the same bad way."),
    "search-dead": Kind(
        409, "Search dead", "The search killed its workers again and again before anything came of it."
    ),
    "search-failed": Kind(409, "Search failed", "The search ended on a fault; its record says which."),
    "export-failed": Kind(409, "Export failed", "The export could not be made."),
    "invalid-enrolment-code": Kind(403, "Invalid enrolment code", "The code is not one that the service made."),
    "enrolment-code-expired": Kind(410, "Enrolment code expired", "A code enrols an agent within 15 minutes."),
    "enrolment-code-used": Kind(409, "Enrolment code used", "A code enrols one agent, once."),
    "agent-gone": Kind(410, "Agent gone", "The agent was removed; its token works no more."),
    "wrong-agent": Kind(403, "Wrong agent", "The token, or the measurement, is another agent's."),
    "lease-lost": Kind(409, "Lease lost", "The measurement has ended, or another process of the agent works on it."),
    "agent-silent": Kind(409, "Agent silent", "The agent was not heard of for a minute."),
    "agent-required": Kind(422, "Agent required", "The device is not the worker's host: an agent must measure on it."),
    "measuring-failed": Kind(409, "Measuring failed", "The agent could not measure a network."),
    "calibration-failed": Kind(409, "Calibration failed", "The device could not be calibrated; the detail says why."),
}


class Problem(Exception):
    """A refusal on its way to the client."""

    def __init__(
        self,
        slug: str,
        detail: str,
        errors: Sequence[Json] = (),
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail, self.errors, self.extra = slug, detail, list(errors), dict(extra or {})
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return PROBLEMS[self.slug].status

    def to_json(self, instance: str = "") -> Json:
        """Return the problem document."""
        body: Json = {
            "type": f"/problems/{self.slug}",
            "title": PROBLEMS[self.slug].title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "errors": self.errors,
        }
        return {**body, **self.extra}


def field_error(pointer: str, detail: str, code: str = "invalid") -> Json:
    """Return one entry of a problem's `errors`."""
    return {"pointer": pointer, "code": code, "detail": detail}
