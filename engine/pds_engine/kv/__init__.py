"""The KV cache: its layout, the pool of pages, and the hand-over of pages between groups."""
