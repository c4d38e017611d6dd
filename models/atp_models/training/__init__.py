"""Training of ATP modules, and of the LLaVA around them: `atp-train`.

Read `soft_decoder` first: the network that masks softly where inference drops tokens. `rows` and
`packing` are what it is fed with.
"""
