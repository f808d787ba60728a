"""Compaction: landing files become few and large ones, published by a manifest and never under a reader's feet.

plan decides, rewrite writes, publish names the next manifest, cleaning removes what nobody reads any more; compact
puts them together, keeper calls it beside the sink, s3 publishes the result. Readers: schemas.gold and views.sql.
"""
