"""Several hosts in one launch: each starts its own ranks, after they have met and compared what they were given.

Node 0 listens at ``sched_host:node_port``; every other node connects, says its number and the hashes of its rank
table and profile, and is refused when one of them differs. The connections stay open: when the ranks of one node
fail, when it is stopped or its host dies, the others end theirs, and no node is done before all are.

Messages are lines of JSON: ``hello`` and ``end`` from a node, ``refused``, ``go`` and ``end`` from node 0.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any, Dict, List, Optional

CONNECT_SECONDS = 1.0
LINE_LIMIT = 65536


class Peer:
    """One connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.node: Optional[int] = None
        self.name = "?"
        self.done = False
        self.buffer = b""

    def say(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode("utf-8") + b"\n")

    def hear(self) -> Optional[List[Dict[str, Any]]]:
        """What has come; None at the end of the connection, or for something that does not speak our language."""
        try:
            data = self.connection.recv(LINE_LIMIT)
        except (TimeoutError, socket.timeout, BlockingIOError):
            return []
        except OSError:
            return None
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        try:
            messages = [json.loads(line.decode("utf-8")) for line in lines]
        except ValueError:
            return None
        strange = len(self.buffer) > LINE_LIMIT or not all(isinstance(item, dict) for item in messages)
        return None if strange or not data else messages


class Nodes:
    """This host's side of the meeting; the supervisor selects on :meth:`sources` and calls :meth:`step`.

    ``spec``: ``{node, nodes, host, port, timeout, prints, sched_port}``.
    """

    def __init__(self, spec: Dict[str, Any]):
        self.spec = spec
        self.node, self.total = int(spec["node"]), int(spec["nodes"])
        self.sched_port = int(spec["sched_port"])
        """Port of MindSpore's scheduler: chosen by node 0, told to the others."""
        self.complete = self.total == 1
        self.all_done = self.total == 1
        self.failure: Optional[Dict[str, str]] = None
        """``{reason, message}`` when this node cannot go on; reason ``refused``, ``node`` or ``stopped``."""
        self.peers: List[Peer] = []
        self.listener: Optional[socket.socket] = None
        self._deadline = time.monotonic() + float(spec["timeout"])
        if self.total > 1 and self.node == 0:
            self.listener = socket.create_server((spec["host"], spec["port"]), backlog=64)

    def sources(self) -> List[socket.socket]:
        """What to select on."""
        return [*([self.listener] if self.listener else []), *(peer.connection for peer in self.peers)]

    def missing(self) -> List[int]:
        """The nodes that have not come."""
        have = {self.node} | {peer.node for peer in self.peers}
        return [node for node in range(self.total) if node not in have] if self.node == 0 else [0]

    def step(self, ready: List[Any]) -> None:
        """Take what has come, and get on with the meeting."""
        if self.total == 1 or self.failure:
            return
        if self.node and not self.peers:
            self._connect()
        if self.listener in ready and self.listener is not None:
            self.peers.append(Peer(_kept_alive(self.listener.accept()[0])))
        for peer in [peer for peer in self.peers if peer.connection in ready]:
            messages = peer.hear()
            for message in messages or []:
                self._take(peer, message)
            if messages is None:
                self._lost(peer)
        if not self.complete and not self.failure and time.monotonic() > self._deadline:
            who = ", ".join(map(str, self.missing()))
            self._fail(
                "node",
                f"node {who} of {self.total} did not come to {self.spec['host']}:{self.spec['port']} within "
                f"{self.spec['timeout']:g} s. Start the same command there, and look at the address and the firewall.",
            )

    def local_done(self) -> None:
        """This node's ranks have all ended with 0."""
        if self.node:
            for peer in self.peers:
                if not peer.done:
                    peer.say(end="done", message="")
                    peer.done = True
        elif not self.all_done and self.complete and all(peer.done for peer in self.peers):
            self._tell("done", "")
            self.all_done = True

    def close(self, state: str, message: str) -> None:
        """Tell the others how it ended here."""
        if not self.all_done:
            self._tell(state, message)
        for one in self.sources():
            one.close()
        self.peers, self.listener = [], None

    def _tell(self, state: str, message: str) -> None:
        for peer in self.peers:
            peer.say(end=state, message=message)

    def _connect(self) -> None:
        try:
            connection = socket.create_connection((self.spec["host"], self.spec["port"]), CONNECT_SECONDS)
        except OSError:
            return
        peer = Peer(_kept_alive(connection))
        peer.node, peer.name = 0, str(self.spec["host"])
        peer.say(hello=self.node, nodes=self.total, prints=self.spec["prints"], name=socket.gethostname())
        self.peers.append(peer)

    def _take(self, peer: Peer, message: Dict[str, Any]) -> None:
        if "hello" in message and self.node == 0:
            self._welcome(peer, message)
        elif peer.node is None:  # whoever can reach the port: only a node that was welcomed is listened to
            self._drop(peer)
        elif "refused" in message:
            self._fail("refused", str(message["refused"]))
        elif "go" in message:
            self.sched_port, self.complete = int(message["go"]), True
        elif message.get("end") == "done":
            peer.done = True
            self.all_done = self.all_done or self.node > 0
        elif "end" in message:
            who, what = f"node {peer.node} ({peer.name})", str(message.get("message") or message["end"])
            if message["end"] == "stopped":
                self._fail("stopped", f"it was stopped on {who}")
            else:
                self._fail("node", f"on {who}: {what}")

    def _welcome(self, peer: Peer, message: Dict[str, Any]) -> None:
        node, peer.name = message["hello"], str(message.get("name"))
        problem = ""
        if message.get("nodes") != self.total:
            problem = f"node {node} was started for {message.get('nodes')} nodes, node 0 for {self.total}"
        elif node not in self.missing():
            problem = f"there is no place for node {node} of {self.total} (it is out of range, or has come already)"
        prints = message.get("prints")
        for name, digest in self.spec["prints"].items():
            theirs = str(prints.get(name) if isinstance(prints, dict) else None)
            if not problem and theirs != digest:
                problem = (
                    f"the {name} of node {node} is not that of node 0 (sha256 {theirs[:12]}…, there {digest[:12]}…). "
                    "Give every node the same one"
                )
        if problem:
            peer.say(refused=problem + ".")
            self._drop(peer)
            return
        peer.node = node
        if not self.missing():
            self.complete = True
            for other in self.peers:
                other.say(go=self.sched_port)

    def _lost(self, peer: Peer) -> None:
        self._drop(peer)
        if peer.done or self.failure or self.all_done or (peer.node is None):
            return
        if not self.complete:  # it may come again
            return
        self._fail("node", f"node {peer.node} ({peer.name}) is gone: the connection to it ended without a word.")

    def _drop(self, peer: Peer) -> None:
        peer.connection.close()
        if peer in self.peers:
            self.peers.remove(peer)

    def _fail(self, reason: str, message: str) -> None:
        self.failure = self.failure or {"reason": reason, "message": message}


def _kept_alive(connection: socket.socket) -> socket.socket:
    """A host that lost its power sends no end of file: it is noticed within a minute."""
    connection.settimeout(5.0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
