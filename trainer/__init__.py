"""From gold to a serving adapter: trigger, dataset, loop, gate, registry, rollout.

Meets streams only on topics and files. Importable with torch, transformers, peft and pyarrow alone.
"""
