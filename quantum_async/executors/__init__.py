"""Clusters as places for units: one file a cluster, each behind the `RemoteExecutor` protocol.

`quantum_async.executors.dask` has `DaskExecutor`. An executor for another cluster is written
against what is here.
"""

from quantum_async.engine.executors.cluster import (
    Capabilities,
    Failed,
    Hearer,
    RemoteAnswer,
    RemoteCall,
    RemoteExecutor,
    RemoteWarning,
)
from quantum_async.engine.executors.performing import perform
from quantum_async.engine.executors.references import RemoteValue

__all__ = [
    "Capabilities",
    "Failed",
    "Hearer",
    "RemoteAnswer",
    "RemoteCall",
    "RemoteExecutor",
    "RemoteValue",
    "RemoteWarning",
    "perform",
]
