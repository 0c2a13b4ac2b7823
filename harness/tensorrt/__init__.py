"""TensorRT seen from the host: what a version and a chip can do, checked before anything is sent.

Torch-free. ``versions`` and ``operators`` hold the runtime's tables, ``chips`` the GPUs',
``placement`` the rules for Q/DQ, ``checks`` applies them all to one file. ``precision`` and
``typed`` say how a network's precisions reach the builder, ``memory`` what a build takes,
``rebuilds`` which of several builds is kept, ``options`` what trtexec's spellings mean.
"""
