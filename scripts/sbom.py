"""Writes, to standard output, the CycloneDX list of what the binary consists of.

    cargo metadata --format-version 1 --locked --filter-platform TRIPLE | sbom.py SECONDS

Components are the crates that are linked into `pangea`, with the features that the workspace builds them with, those that only take part
in building it (scope `excluded`), and the npm packages that are bundled into the console's files. SECONDS since 1970 is the time that the
list names: the same checkout gives the same bytes.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

ROOT = "pangea-node"
REPOSITORY = Path(__file__).resolve().parent.parent
CONSOLE = REPOSITORY / "node" / "console"

# An import that names a package: neither a path nor a module of Node.js.
BARE_IMPORT = re.compile(r"""(?:from|import)\s*\(?\s*["']((?:@[\w.-]+/)?[\w-][\w.-]*)(?:/[^"']*)?["']""")


def licences(expression: str | None) -> list[Any]:
    # Crates from before SPDX expressions separate alternatives with a slash.
    return [LicenseFactory().make_from_string(expression.replace("/", " OR "))] if expression else []


def source(url: str | None) -> list[ExternalReference]:
    return [ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(url))] if url else []


def crate(package: dict[str, Any], checksums: dict[tuple[str, str], str], linked: bool) -> Component:
    name, version = package["name"], package["version"]
    checksum = checksums.get((name, version))
    return Component(
        type=ComponentType.APPLICATION if name == ROOT else ComponentType.LIBRARY,
        name="pangea" if name == ROOT else name,
        version=version,
        purl=PackageURL("cargo", None, name, version),
        bom_ref=f"cargo:{name}@{version}",
        description=package["description"],
        licenses=licences(package["license"]),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=checksum)] if checksum else [],
        external_references=source(package["repository"]),
        scope=ComponentScope.REQUIRED if linked else ComponentScope.EXCLUDED,
    )


def add_crates(bom: Bom, metadata: dict[str, Any]) -> Component:
    packages = {package["id"]: package for package in metadata["packages"]}
    edges = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
    lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}
    (root,) = (id for id, package in packages.items() if package["name"] == ROOT)

    def reached(kinds: tuple[str | None, ...]) -> set[str]:
        found, open_ids = {root}, [root]
        while open_ids:
            for edge in edges[open_ids.pop()]:
                if edge["pkg"] not in found and any(kind["kind"] in kinds for kind in edge["dep_kinds"]):
                    found.add(edge["pkg"])
                    open_ids.append(edge["pkg"])
        return found

    linked, all_ids = reached((None,)), reached((None, "build"))
    components = {id: crate(packages[id], checksums, id in linked) for id in sorted(all_ids)}
    for id, component in components.items():
        if id != root:
            bom.components.add(component)
        used = [edge["pkg"] for edge in edges[id] if any(kind["kind"] in (None, "build") for kind in edge["dep_kinds"])]
        bom.register_dependency(component, [components[pkg] for pkg in used])
    return components[root]


def bundled_packages() -> Iterator[tuple[str, dict[str, Any]]]:
    """The npm packages that the console's sources import, and those that they depend on, as the lock file says."""
    packages = json.loads((CONSOLE / "package-lock.json").read_text())["packages"]
    sources = [path for path in (CONSOLE / "src").rglob("*.ts*") if ".test." not in path.name]
    wanted = sorted({name for path in sources for name in BARE_IMPORT.findall(path.read_text())})
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        entry = packages.get(f"node_modules/{name}")
        if entry is None or name in seen:
            continue
        seen.add(name)
        yield name, entry
        wanted += entry.get("dependencies", {})


def add_console(bom: Bom, root: Component) -> None:
    for full_name, entry in bundled_packages():
        scope, _, name = full_name.rpartition("/")
        algorithm, _, digest = entry["integrity"].partition("-")
        component = Component(
            type=ComponentType.LIBRARY,
            name=name,
            group=scope or None,
            version=entry["version"],
            purl=PackageURL("npm", scope or None, name, entry["version"]),
            bom_ref=f"npm:{full_name}@{entry['version']}",
            licenses=licences(entry.get("license")),
            hashes=[HashType(alg=HashAlgorithm(algorithm.replace("sha", "SHA-")), content=base64.b64decode(digest).hex())],
            scope=ComponentScope.REQUIRED,
        )
        bom.components.add(component)
        bom.register_dependency(root, [component])


def main() -> None:
    bom = Bom()
    bom.metadata.timestamp = datetime.fromtimestamp(int(sys.argv[1]), timezone.utc)
    root = add_crates(bom, json.load(sys.stdin))
    bom.metadata.component = root
    add_console(bom, root)
    parts = "\n".join(sorted(str(component.bom_ref.value) for component in bom.components))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{root.purl}\n{sys.argv[1]}\n{parts}")
    outputter = make_outputter(bom=bom, output_format=OutputFormat.JSON, schema_version=SchemaVersion.V1_6)
    print(outputter.output_as_string(indent=1))


if __name__ == "__main__":
    main()
