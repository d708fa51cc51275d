"""What tests wait by."""

import asyncio
import gc
import socket

import pytest
from waiting import stop_accepting


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_that_is_accepted_while_its_server_closes_is_not_leaked(turns):
    """pytest makes an error of the warning that a leaked socket gives."""

    async def serve(reader, writer):
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()):
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_accepting(server)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
