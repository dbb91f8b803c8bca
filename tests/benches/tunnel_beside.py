"""What asking a model at another node costs: its owner asked directly, a member that coordinates a session on the owner, and a
lite client that has the owner answer the whole request, in turn in one run.

usage: tunnel_beside.py PANGEA MODEL.gguf [ROUNDS]

Every node has one compute thread; all run on this machine and are ended by this script. Prints tables of medians.
"""

import http.client
import json
import os
import shutil
import statistics
import sys
import tempfile
import time

from split_beside import STORY, Node

WORDS = " ".join(f"river {at} stone" for at in range(720))


class Entrance:
    """A node that is asked over one connection."""

    def __init__(self, node):
        self.node = node
        self.connection = http.client.HTTPConnection(node.facts["api"], timeout=300)

    def rest(self):
        """Ends the connection; the next request opens another one. The node ends connections that are idle for long."""
        self.connection.close()

    def models(self):
        """The models that the node lists."""
        self.connection.request("GET", "/v1/models")
        return json.load(self.connection.getresponse())["data"]

    def stream(self, model, text, max_tokens):
        """A streamed greedy answer: seconds to the first token, tokens per second after it, tokens of the prompt, verdict."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
        body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        began = time.monotonic()
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{answer.status}: {answer.read().decode()}")
        first, last, final = None, None, None
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            final = json.loads(line[len("data: "):])
            if "error" in final:
                sys.exit(str(final))
            if any(choice["delta"].get("content") for choice in final["choices"]):
                last = time.monotonic()
                first = first or last
        usage = final["usage"]
        rate = (usage["completion_tokens"] - 1) / (last - first) if last > first else 0.0
        return first - began, rate, usage["prompt_tokens"], final["pangea"]["verdict"]


def wait_for(what, condition):
    """Polls for a minute."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"this never happened: {what}")
        time.sleep(0.1)


def main():
    """Starts the nodes, measures in turn, prints the tables."""
    pangea, path = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 15
    folder = tempfile.mkdtemp(prefix="pangea-tunnel-")
    model = os.path.basename(path).removesuffix(".gguf")
    nodes = []

    def start(name, *arguments):
        nodes.append(Node(pangea, folder, name, *arguments))
        return Entrance(nodes[-1])

    try:
        owner = start("owner", "--model", path)
        address = owner.node.facts["listening"][0]
        entrances = {
            "owner": owner,
            # An audit would compute beside the next answer.
            "session": start("session", "--peer", address, "--audit", "0"),
            "tunnel": start("tunnel", "--peer", address, "--client"),
        }
        for name, entrance in entrances.items():
            while not any(known["id"] == model and known["pangea"]["nodes"] for known in entrance.models()):
                time.sleep(0.2)
            # The first request at an entrance fetches what the entrance needs of the model.
            print(f"{name}: {entrance.stream(model, 'Hello', 4)[3]}")
        firsts = {name: [] for name in entrances}
        rates = {name: [] for name in entrances}
        for at in range(rounds):
            # Each is the first of a round as often as the others.
            order = list(entrances)[at % 3:] + list(entrances)[:at % 3]
            for name in order:
                firsts[name].append(entrances[name].stream(model, "Hello", 2)[0])
            for name in order:
                rates[name].append(entrances[name].stream(model, STORY, 256)[1])
        print("| entrance | first token, ms | more than at the owner, ms | one stream, tokens/s | of the owner's |")
        print("|---|---|---|---|---|")
        for name in entrances:
            more = statistics.median(x - y for x, y in zip(firsts[name], firsts["owner"])) * 1e3
            kept = statistics.median(x / y for x, y in zip(rates[name], rates["owner"]))
            first, rate = statistics.median(firsts[name]) * 1e3, statistics.median(rates[name])
            print(f"| {name} | {first:.1f} | {more:+.1f} | {rate:.0f} | {kept:.3f} |")
        print("| a prompt first at, then at | tokens | first token, s | again, s | ratio |\n|---|---|---|---|---|")
        pairs = [(one, other) for one in entrances for other in entrances]
        for at, (one, other) in enumerate(pairs):
            text = f"Round {at}. {WORDS}"
            entrances[other].rest()
            once, again = entrances[one].stream(model, text, 2), entrances[other].stream(model, text, 2)
            print(f"| {one}, {other} | {once[2]} | {once[0]:.2f} | {again[0]:.2f} | {again[0] / once[0]:.3f} |")
    finally:
        for node in nodes:
            node.process.terminate()
        for node in nodes:
            node.process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
