"""Messages of sbatch when it queues no job: the profile's key to fix, and the next attempt."""

from __future__ import annotations

import re

REFUSAL_KEYS = (
    ("maxwall", "slurm.time"),
    ("accounting/qos policy", "slurm.qos, slurm.account or the resources of a run"),
    ("invalid partition", "slurm.partition"),
    ("invalid account", "slurm.account"),
    ("invalid qos", "slurm.qos"),
    ("invalid feature", "slurm.constraint"),
    ("invalid node name", "slurm.nodelist or slurm.exclude"),
    ("invalid wckey", "slurm.wckey"),
    ("memory specification", "slurm.mem or node.memory_gb"),
    ("time limit", "slurm.time"),
    ("node configuration is not available", "gpu.per_node, node or slurm.constraint"),
    ("generic resource", "gpu"),
    ("reservation", "slurm.reservation"),
    ("license", "slurm.licenses"),
    ("unrecognized option", "slurm"),
    ("invalid option", "slurm"),
    ("node count", "slurm.nodes"),
)
"""Parts of sbatch's messages, in lower case, and the profile's key to fix."""

TRANSIENT_ERRORS = (
    "socket timed out",
    "unable to contact slurm controller",
    "connection refused",
    "connection reset",
    "communication connection failure",
    "zero bytes were transmitted",
    "temporarily unable",
    "try again",
    "timed out",
    "backup controller in standby",
)
"""Parts of sbatch's messages, in lower case, after which the same command may succeed later."""

SUBMIT_LIMIT = "job submit limit"


def find_profile_key(refusal: str) -> str | None:
    """Return the profile's key that sbatch's refusal concerns; None if unknown."""
    text = refusal.lower()
    if option := re.search(r"(?:invalid|for) --([a-z-]+)", text):
        return f"slurm.{option[1].replace('-', '_')}"
    return next((key for phrase, key in REFUSAL_KEYS if phrase in text), None)


def is_transient(refusal: str) -> bool:
    """Return whether sbatch's failure is temporary."""
    text = refusal.lower()
    return any(phrase in text for phrase in TRANSIENT_ERRORS)


def is_submit_limit(refusal: str) -> bool:
    """Return whether sbatch would accept fewer jobs, or the same ones after others have ended.

    SLURM's message is the same for any limit; its first word tells them apart.
    """
    limit = re.search(r"\b(?:Assoc|QOS)[A-Z]\w+", refusal)
    return SUBMIT_LIMIT in refusal and (limit is None or "Submit" in limit[0])
