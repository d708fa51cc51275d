"""What releases say to each other is listed, and the list is how an older release is found."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests have no packages
import contract


def test_the_page_lists_what_the_sources_say():
    assert contract.PAGE.read_text() == contract.page(contract.text()), "run `make gen`"


def test_a_field_that_is_added_shows():
    text = contract.text()
    assert "  TransferOffer: transfer epoch" in text
    assert "kv_fingerprint" in text.partition("/pds/state")[2]
    for word in ("x-pds-peer-group", "pds_router_requests", "PDS_REVISION", "<pds>-cache-key"):
        assert word in text


def test_what_is_left_out_of_a_message_can_be_told_from_what_must_be_there():
    assert contract.structs(contract.Frame)[0] == "Ack: ticket"
    hello = next(each for each in contract.structs(contract.Message) if each.startswith("Hello:"))
    assert hello == "Hello: peer group incarnation rank [protocol] [manifest]"
