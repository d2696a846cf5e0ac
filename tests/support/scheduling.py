"""Order and distribution of tests over pytest-xdist's processes.

Tests of one file run in one process, so that costly fixtures of a module are made once; tests that
share a cluster or a trained study do so over several files. Marks `xdist_group` would say it in
the tests, but pytest-xdist 3.8.0 ignores them under pytest 9.2.0.
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadFileScheduling

GROUPS = {
    r"/launching/cluster/.*(no-accounting|two nodes)": "cluster without accounting",
    r"/launching/cluster/": "cluster with accounting",
    r"/test_battery\.py.*no accounting": "battery without accounting",
    r"/test_docs\.py.*slow_blocks": "documentation",
    r"/test_docs\.py.*(cluster|own_trainer)": "documentation on a cluster",
    r"/data/test_(codec|documents|prepare|speech|text_corpus)": "codec",
}
"""Pattern of a test's id -> name of the group that runs in one process."""


class GroupScheduling(LoadFileScheduling):
    """Schedule tests by group, all others by file."""

    def _split_scope(self, nodeid: str) -> str:
        for pattern, group in GROUPS.items():
            if re.search(pattern, f"/{nodeid}"):
                return group
        return super()._split_scope(nodeid)
