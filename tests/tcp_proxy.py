"""A server's unix socket at a TCP address, such as one in a namespace: who reaches it there does so over a cable."""

import asyncio
import sys
from asyncio import StreamReader, StreamWriter


def main() -> None:
    """`python -m tests.tcp_proxy ADDRESS PORT SOCKET`. Says `listening` once it does."""
    address, port, socket = sys.argv[1:]
    asyncio.run(_serve(address, int(port), socket))


async def _serve(address: str, port: int, socket: str) -> None:
    async def pass_on(reader: StreamReader, writer: StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))

    server = await asyncio.start_server(pass_on, address, port)
    print("listening", flush=True)  # noqa: T201
    await server.serve_forever()


async def _pump(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    main()
