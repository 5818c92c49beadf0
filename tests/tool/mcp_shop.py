"""A real MCP server for tests: ``python mcp_shop.py`` (stdio) or ``... PORT`` (HTTP)."""

import os
import sys

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("shop")
PRICES = {"tea": 3, "ham": 5}
basket: list[str] = []


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def price(article: str) -> int:
    """The price of an article in cents."""
    if article not in PRICES:
        raise ValueError(f"no {article} here")
    return PRICES[article]


@server.tool()
def put(article: str) -> str:
    """Put an article into the basket."""
    basket.append(article)
    return ", ".join(basket)


@server.tool()
def leaflet(pages: int) -> str:
    """Much text."""
    return "offer " * pages


@server.tool()
def burn() -> str:
    """End the server's process in the middle of a call."""
    os._exit(3)


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def burn_once(marker: str) -> str:
    """The same, but only if there is no file of this name yet."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(3)
    return "still here"


@server.tool()
def secrets() -> str:
    """Which of the caller's variables this process sees."""
    return ",".join(sorted(name for name in os.environ if name.startswith("SHOP_")))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
