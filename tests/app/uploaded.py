"""Uploads as a worker leaves them: read, and ready for searches."""

from __future__ import annotations

from app.actions import Service
from app.domain import ids
from app.domain.owners import DEFAULT
from app.store.blobs import record
from app.store.tables import Dataset, Model
from tests.worker.search.pictures import resnet


def put_ready(service: Service, owner_id: str = DEFAULT) -> dict[str, str]:
    """Store a network and a labelled dataset that are ready; return their ids."""
    graph = resnet()
    sha = service.blobs.put(b"a network")
    info = {"rows": 100, "shape": list(graph.input_shape), "dtype": "uint8", "has_labels": True, "classes": 10}
    with service.database.writing() as session:
        record(session, sha, 9)
        model = Model(id=ids.new_id("model"), name="net", format="onnx", blob_sha=sha, bytes=9, state="ready")
        model.graph = graph.to_json()
        data = Dataset(id=ids.new_id("dataset"), name="data", blob_sha=sha, bytes=9, state="ready", spec={}, info=info)
        model.owner_id = data.owner_id = owner_id
        session.add_all([model, data])
    return {"model": model.id, "dataset": data.id}
