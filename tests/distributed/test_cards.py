"""What nvidia-smi prints, read: listings written in its format, with known answers."""

from agent_r1.distributed.cards import Card, parse_cards, parse_links, read_fabric

FOUR = """\
\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tSYS\tPIX\t0-51\t0\t\tN/A
GPU1\tNV18\t X \tNV12\tSYS\tNODE\t0-51\t0\t\tN/A
GPU2\tNV18\tNV12\t X \tSYS\tSYS\t52-103\t1\t\tN/A
GPU3\tSYS\tSYS\tSYS\t X \tSYS\t52-103\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes
"""


def test_cards_of_a_listing():
    listing = (
        "0, NVIDIA H100 80GB HBM3, 81559 MiB, 4 MiB, 570.86.15\n"
        "1, NVIDIA L4, 23034 MiB, 20001 MiB, 570.86.15\n"
    )
    assert parse_cards(listing) == (
        Card("NVIDIA H100 80GB HBM3", 81559, 4, "570.86.15"),
        Card("NVIDIA L4", 23034, 20001, "570.86.15"),
    )


def test_a_failed_listing_has_no_cards():
    assert parse_cards("") == ()
    assert parse_cards("No devices were found\n") == ()


def test_links_between_cards_are_listed_the_slowest_first_and_without_network_adapters():
    assert parse_links(FOUR) == ("SYS", "NV12", "NV18")


def test_a_single_card_has_no_links():
    assert parse_links("\tGPU0\tCPU Affinity\nGPU0\t X \t0-15\n") == ()
    assert parse_links("") == ()


def test_ports_of_a_fabric(tmp_path):
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert read_fabric(tmp_path) == ("mlx5_0/1 ACTIVE 400 Gb/sec",)
    assert read_fabric(tmp_path / "absent") == ()
