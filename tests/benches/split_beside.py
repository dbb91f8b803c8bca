"""One model split over two nodes beside the same model on one node, in turn in one run: prompts, decoding, many streams.

usage: split_beside.py PANGEA MODEL.gguf [ROUNDS]

Every node has one compute thread; all run on this machine and are ended by this script. Prints a table of medians.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

STORY = "Write a very long and detailed story about a lighthouse keeper, the sea, and a storm."
WORDS = " ".join(f"river {at} stone" for at in range(171))


class Node:
    """A node of this run's own."""

    def __init__(self, pangea, folder, name, *arguments):
        home = os.path.join(folder, name)
        os.makedirs(home)
        command = [pangea, "node", "--data-dir", home, "--name", name, "--threads", "1", "--no-mdns", "--open"]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--api-addr", "127.0.0.1:0"]
        with open(os.path.join(folder, f"{name}.log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command + list(arguments), stdout=log, stderr=log)
        facts = os.path.join(home, "node.json")
        while not os.path.exists(facts):
            if self.process.poll() is not None:
                sys.exit(f"the node {name} ended at once")
            time.sleep(0.05)
        with open(facts, encoding="utf-8") as file:
            self.facts = json.load(file)

    def chat(self, model, text, max_tokens):
        """A greedy answer, whole."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
        request = urllib.request.Request(
            f"http://{self.facts['api']}/v1/chat/completions",
            data=json.dumps(body | {"temperature": 0}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def streams(self, model, count, tokens):
        """Tokens per second of so many answers at once, prompts included."""
        made = []

        def one(at):
            made.append(self.chat(model, f"Story number {at}: {STORY}", tokens)["usage"]["completion_tokens"])

        threads = [threading.Thread(target=one, args=(at,)) for at in range(count)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(made) / (time.monotonic() - began)


def measure(node, model, at):
    """One round of everything on one node."""
    prompt = node.chat(model, f"Round {at}. {WORDS}", 2)
    return {
        "one stream, tokens/s": node.chat(model, STORY, 256)["timings"]["answer_tokens_per_s"],
        f"prompt of {prompt['usage']['prompt_tokens']}, tokens/s": prompt["timings"]["prompt_tokens_per_s"],
        "4 streams in all, tokens/s": node.streams(model, 4, 96),
        "16 streams in all, tokens/s": node.streams(model, 16, 96),
    }


def main():
    """Starts the nodes, measures in turn, prints the table."""
    pangea, path = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    folder = tempfile.mkdtemp(prefix="pangea-split-")
    nodes = []
    try:
        first = Node(pangea, folder, "first", "--model", path, "--split", "--audit", "0")
        nodes.append(first)
        nodes.append(Node(pangea, folder, "second", "--peer", first.facts["listening"][0]))
        alone = Node(pangea, folder, "alone", "--model", path)
        nodes.append(alone)
        model = os.path.basename(path).removesuffix(".gguf")
        alone.chat(model, "Hello", 2)
        while len(first.chat(model, "Hello", 2)["pangea"]["stages"]) < 2:
            time.sleep(0.2)
        split, whole = [], []
        for at in range(rounds):
            split.append(measure(first, model, at))
            whole.append(measure(alone, model, at))
        stages = first.chat(model, "Hello", 2)["pangea"]["stages"]
        print("layers:", " and ".join(f"{stage['layers'][0]} to {stage['layers'][1] - 1}" for stage in stages))
        print("| what | two nodes | one node | ratio |\n|---|---|---|---|")
        for what in split[0]:
            two, one = (statistics.median(row[what] for row in rows) for rows in (split, whole))
            print(f"| {what} | {two:.0f} | {one:.0f} | {two / one:.2f} |")
    finally:
        for node in nodes:
            node.process.terminate()
        for node in nodes:
            node.process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
