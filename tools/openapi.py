#!/usr/bin/env python3
"""Writes conf/openapi.yaml as JSON into the header that the module compiles in.

Only who changes the description needs this (and PyYAML): the header is in the
repository, and t/glm_openapi.t looks whether the two agree.  --check writes
nothing and fails when they do not.
"""

import json
import pathlib
import sys

import yaml

TREE = pathlib.Path(__file__).resolve().parent.parent
SOURCE = TREE / "conf/openapi.yaml"
HEADER = TREE / "ngx_http_glm_module/ngx_http_glm_openapi.h"
GUARD = "_NGX_HTTP_GLM_OPENAPI_H_INCLUDED_"
WIDTH = 72


def literals(text):
    """C string literals of a line each; no escape is cut in two."""
    line = ""
    for c in text:
        c = {'"': '\\"', "\\": "\\\\", "?": "\\?"}.get(c, c)
        if len(line) + len(c) > WIDTH:
            yield f'    "{line}"'
            line = ""
        line += c
    yield f'    "{line}"'


def header():
    with SOURCE.open(encoding="utf-8") as f:
        text = json.dumps(yaml.safe_load(f), separators=(",", ":"))
    return "\n".join([
        "",
        "/* made of conf/openapi.yaml by tools/openapi.py: change that */",
        "",
        f"#ifndef {GUARD}",
        f"#define {GUARD}",
        "",
        "",
        "static const char  ngx_http_glm_openapi_json[] =",
        *literals(text),
        "    ;",
        "",
        "",
        f"#endif /* {GUARD} */",
        "",
    ])


def main():
    want = header()
    if sys.argv[1:] != ["--check"]:
        HEADER.write_text(want, encoding="ascii")
        return 0
    if HEADER.exists() and HEADER.read_text(encoding="ascii") == want:
        return 0
    print(f"{HEADER.relative_to(TREE)} is not {SOURCE.relative_to(TREE)}: run tools/openapi.py")
    return 1


sys.exit(main())
