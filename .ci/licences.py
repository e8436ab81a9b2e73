"""Checks the licence of every dependency against deny.toml, as `cargo deny check licenses` does, without building it."""

import json
import re
import subprocess
import sys
import tomllib

with open("deny.toml", "rb") as file:
    allowed = set(tomllib.load(file)["licenses"]["allow"])

output = subprocess.run(
    ["cargo", "metadata", "--format-version", "1", "--all-features", "--locked"], check=True, capture_output=True
).stdout
packages = json.loads(output)["packages"]


def acceptable(expression):
    """Evaluates an SPDX expression: OR wants one side, AND both. A slash is the old way to write OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def peek():
        return tokens[position] if position < len(tokens) else None

    def either():
        value = both()
        while peek() == "OR":
            take()
            value = both() or value
        return value

    def both():
        value = one()
        while peek() == "AND":
            take()
            value = one() and value
        return value

    def one():
        token = take()
        if token == "(":
            value = either()
            take()
            return value
        if peek() == "WITH":
            take()
            token = f"{token} WITH {take()}"
        return token in allowed

    return either()


refused = [
    f"{package['name']} {package['version']}: {package['license'] or 'no licence given'}"
    for package in packages
    if not package["license"] or not acceptable(package["license"])
]
for line in refused:
    print("not in deny.toml's list:", line, file=sys.stderr)
print(f"licences: {len(packages)} packages, {len(refused)} refused")
sys.exit(bool(refused))
