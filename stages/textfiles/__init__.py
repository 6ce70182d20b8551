"""Text files that people write: how bytes become text, and text becomes values, each with the line it is written in.

`text` decodes a file, `documents` reads JSON and YAML, `tables` reads CSV and its kin, `values` has one short text as
the value it stands for. Nothing here knows what a field means.
"""
