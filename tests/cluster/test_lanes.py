"""The lanes of the tests on the cluster: nothing is left out, and no two meet."""

import re
from collections import Counter
from pathlib import Path

import lanes
from pds_cluster.settings import load

TESTS = Path(__file__).parents[1]


def test_each_file_with_a_cluster_test_is_in_one_part():
    marked = {
        str(path.relative_to(TESTS))
        for path in TESTS.glob("*/test_*.py")
        if re.search(r"mark\.cluster\b", path.read_text()) and path != Path(__file__)
    }
    parts = Counter(file for part in lanes.ROLLOUTS + lanes.OTHERS for file in part)
    assert parts == Counter(marked)


def test_the_second_instance_shares_no_name_and_no_address_with_the_first():
    for first in ({}, {"PDS_CLUSTER_NAME": "abcdefghi2", "PDS_CLUSTER_BLOCK": "15"}):
        one, other = load(first), load(lanes.other_instance(first))
        assert one.id != other.id
        assert one.run != other.run
        assert one.pod_cidr != other.pod_cidr


def test_a_folder_of_the_first_instance_is_not_the_seconds():
    first = {"PDS_CLUSTER_DIR": "/var/lib/mine/here"}
    assert load(first).run != load(lanes.other_instance(first)).run
