"""Topology methods: who drops and who grows, one algorithm a file, each update a pure function of arrays."""

from sparsekit.topology.rigl import RigL
from sparsekit.topology.schedule import UpdateSchedule, cosine_drop_fraction
from sparsekit.topology.set import SET
from sparsekit.topology.srigl import SRigL
from sparsekit.topology.static import Static
from sparsekit.topology.update import TopologyMethod, TopologyUpdate

__all__ = [
    "SET",
    "RigL",
    "SRigL",
    "Static",
    "TopologyMethod",
    "TopologyUpdate",
    "UpdateSchedule",
    "cosine_drop_fraction",
]
