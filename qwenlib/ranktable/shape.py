"""Rules over the whole table: uniqueness, ranks, card counts, groups, NIC planes. Linear in the number of ranks."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Dict, Hashable, List, Sequence, Tuple

from qwenlib.ranktable.draft import CardDraft, ServerDraft
from qwenlib.ranktable.rules import FAIL, WARN, Problem, shown

MAX_DEVICE_ID = 7
CARDS_PER_SERVER = (1, 2, 4, 8)


def shape_problems(servers: Sequence[ServerDraft]) -> List[Problem]:
    """Every problem that shows only when cards and servers are compared."""
    problems: List[Problem] = []
    _servers(servers, problems)
    _addresses(servers, problems)
    _ranks(servers, problems)
    _cards(servers, problems)
    problems += nic_planes([card for server in servers for card in server.cards])
    return problems


def _servers(servers: Sequence[ServerDraft], problems: List[Problem]) -> None:
    seen: Dict[Hashable, str] = {}
    for server in servers:
        if server.server_id:
            _once(seen, server.server_id, f"{server.path}.server_id", 8, problems)
    counts = Counter(len(server.cards) for server in servers if server.cards)
    for server in servers:
        count = len(server.cards)
        if count and count not in CARDS_PER_SERVER:
            problems.append(
                Problem(FAIL, _list_path(server), 20, f"has {count} cards; a 910A server takes 1, 2, 4 or 8")
            )
    if len(counts) > 1:
        _unequal(servers, counts, problems)


def _unequal(servers: Sequence[ServerDraft], counts: Counter[int], problems: List[Problem]) -> None:
    """Name every server whose count is not the usual one; all of them when they are few or there is no usual one."""
    (usual, number), (_, next_number) = counts.most_common(2)
    everyone = number == next_number or len(servers) <= 8
    others = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
    for server in servers:
        if server.cards and (everyone or len(server.cards) != usual):
            message = f"has {len(server.cards)} cards; all servers must have the same number (here: {others})"
            problems.append(Problem(FAIL, _list_path(server), 20, message))


def _addresses(servers: Sequence[ServerDraft], problems: List[Problem]) -> None:
    seen: Dict[Hashable, str] = {}
    first_size = None
    for card in (card for server in servers for card in server.cards):
        path = f"{card.path}.device_ip"
        addresses = [part.strip() for part in (card.device_ip or "").split(",")] if card.device_ip else []
        if not addresses:
            if card.entry is None or ("device_ip" in card.entry and card.device_ip is None):
                continue  # told already
            if len(servers) > 1:
                problems.append(Problem(FAIL, path, 13, "is missing; it must be set when there are several servers"))
            else:
                message = "is missing; HCCL lets that pass on one server, its guide demands it on a 910A"
                problems.append(Problem(WARN, path, 13, message))
        for address in addresses:
            try:
                value = ipaddress.ip_address(address)
            except ValueError:
                problems.append(Problem(FAIL, path, 11, f"{shown(address)} is no IP address"))
                continue
            if value.is_unspecified or value.is_multicast:
                problems.append(Problem(FAIL, path, 11, f"{shown(address)} cannot be the address of a card"))
            elif value.is_loopback:
                problems.append(Problem(WARN, path, 11, f"{shown(address)} is a loopback address"))
            _once(seen, value, path, 12, problems)
        if first_size is None:
            first_size = (len(addresses), path)
        elif len(addresses) != first_size[0] and addresses:
            message = f"has {len(addresses)} addresses, {first_size[1]} has {first_size[0]}"
            problems.append(Problem(FAIL, path, 14, message))
        elif len(addresses) != first_size[0] and len(servers) == 1:
            problems.append(Problem(FAIL, path, 14, f"has no address, {first_size[1]} has {first_size[0]}"))


def _ranks(servers: Sequence[ServerDraft], problems: List[Problem]) -> None:
    cards = [card for server in servers for card in server.cards]
    seen: Dict[Hashable, str] = {}
    for card in cards:
        if card.rank_id is None:
            continue
        path = f"{card.path}.rank_id"
        if card.rank_id >= len(cards):
            problems.append(
                Problem(FAIL, path, 18, f"is {card.rank_id}, but {len(cards)} ranks end at {len(cards) - 1}")
            )
        _once(seen, card.rank_id, path, 18, problems)
    if len(seen) != len(cards) or any(rank not in seen for rank in range(len(cards))):
        return
    for server in servers:
        ranks = [card.rank_id for card in server.cards if card.rank_id is not None]
        if ranks and max(ranks) - min(ranks) + 1 != len(ranks):
            places = enumerate(server.cards, min(ranks))
            where = next((f"{card.path}.rank_id" for place, card in places if card.rank_id != place), "")
            listed = ", ".join(map(str, sorted(ranks)))
            if server.pods:
                where = f"{server.pods[0]}.pod_name"
                listed += f" (ranks follow the pod names; its pods are {', '.join(server.pods)})"
            message = f"{server.path} has the ranks {listed}: they must follow each other on one server"
            problems.append(Problem(FAIL, where or server.path, 30, message))


def _cards(servers: Sequence[ServerDraft], problems: List[Problem]) -> None:
    for server in servers:
        seen: Dict[Hashable, str] = {}
        ids = []
        for card in server.cards:
            if card.device_id is None:
                continue
            path = f"{card.path}.device_id"
            if card.device_id > MAX_DEVICE_ID:
                problems.append(Problem(FAIL, path, 10, f"is {card.device_id}; a 910A server has the cards 0 to 7"))
            elif _once(seen, card.device_id, path, 23, problems):
                ids.append(card.device_id)
        if len(server.cards) in (2, 4) and len(ids) == len(server.cards) and not same_group(ids):
            message = f"cards {', '.join(map(str, sorted(ids)))} lie in both groups; take them from 0-3 or from 4-7"
            message += f" ({', '.join(f'{card.path}.device_id' for card in _odd_ones(server.cards))})"
            problems.append(Problem(FAIL, _list_path(server), 28, message))


def _odd_ones(cards: Sequence[CardDraft]) -> List[CardDraft]:
    """The cards of the group that has fewer of them; all when both have as many."""
    halves = [[card for card in cards if (card.device_id or 0) // 4 == group] for group in (0, 1)]
    low, high = sorted(halves, key=len)
    return low if len(low) < len(high) else list(cards)


def same_group(ids: Sequence[int]) -> bool:
    """Whether the cards lie in one group of a 910A server, or are all eight of it."""
    return len(ids) == 8 or len({number // 4 for number in ids}) <= 1


def nic_planes(cards: Sequence[CardDraft]) -> List[Problem]:
    """Warnings about NIC planes: cards i and i+4 share a subnet, on all servers; the four planes differ.

    A table has no netmask, so /16 and /24 are tried and the one with fewer odd cards is believed.
    """
    known: List[Tuple[CardDraft, int, int]] = []
    for card in cards:
        try:
            address = ipaddress.IPv4Address((card.device_ip or "").split(",")[0].strip())
        except ValueError:
            continue
        if card.device_id is not None and card.device_id <= MAX_DEVICE_ID:
            known.append((card, card.device_id % 4, int(address)))
    if len(known) < 2:
        return []
    return min((_planes(known, bits) for bits in (16, 24)), key=len)


def _planes(known: Sequence[Tuple[CardDraft, int, int]], bits: int) -> List[Problem]:
    nets: Dict[int, Counter[int]] = {}
    for _, plane, address in known:
        nets.setdefault(plane, Counter())[address >> (32 - bits)] += 1
    usual = {plane: counter.most_common(1)[0][0] for plane, counter in nets.items()}
    clash = Counter(usual.values())
    problems = []
    for card, plane, address in known:
        net = address >> (32 - bits)
        if net != usual[plane]:
            other = ipaddress.IPv4Network((usual[plane] << (32 - bits), bits))
            message = f"{card.device_ip} is outside {other}, where the other cards of NIC plane {plane} are"
            problems.append(Problem(WARN, f"{card.path}.device_ip", 29, message))
        elif clash[net] > 1:
            message = f"{card.device_ip} of NIC plane {plane} shares its /{bits} with another plane"
            problems.append(Problem(WARN, f"{card.path}.device_ip", 29, message))
    return problems


def _once(seen: Dict[Hashable, str], value: Hashable, path: str, rule: int, problems: List[Problem]) -> bool:
    if value in seen:
        problems.append(Problem(FAIL, path, rule, f"{shown(value)} is used already at {seen[value]}"))
        return False
    seen[value] = path
    return True


def _list_path(server: ServerDraft) -> str:
    if not server.pods:
        return f"{server.path}.device"
    return " + ".join(f"{path}.devices" for path in server.pods)
