"""benchmarks/common/flames.py: what py-spy has sampled, and how it is drawn."""

import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from common.flames import Panel, collapsed, drawn

RAW = """main (a.py:1);loop (a.py:9);plan (b.py:3) 30
main (a.py:1);loop (a.py:10);plan (b.py:7) 10
main (a.py:1);loop (a.py:9);send (c.py:1) 20
main (a.py:1);Poller.poll (zmq/poll.py:80) 500
main (a.py:1);EpollSelector.select (selectors.py:468) 500
"""


def test_functions_are_joined_and_waiting_is_left_out():
    root = collapsed(RAW)
    assert root.samples == 60
    assert {name: call.samples for name, call in root.calls.items()} == {
        "plan (b.py)": 40,
        "send (c.py)": 20,
    }


def test_a_frame_is_as_wide_as_its_time():
    svg = ElementTree.fromstring(drawn("<all>", [Panel("one & only", collapsed(RAW))]))
    tag = "{http://www.w3.org/2000/svg}"
    widths = {
        group.findtext(f"{tag}title"): float(group.find(f"{tag}rect").get("width"))
        for group in svg.iter(f"{tag}g")
    }
    assert widths == {"plan (b.py) 66.7%": 799.7, "send (c.py) 33.3%": 399.7}
