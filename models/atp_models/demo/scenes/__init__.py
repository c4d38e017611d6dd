"""The demo's task: seeded scenes of emoji artwork, and questions about them.

`make_scene` lays a scene out from two numbers, `draw` draws it, `questions` asks about it. The
trained deltas belong to exactly these scenes and words: tests pin them.
"""
