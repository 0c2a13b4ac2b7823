"""Compression: turn a network and a strategy into a variant.

Weights of few bits, without training and without a label: ``network`` with an average of 4 bits a
weight, on a few hundred ``images`` ``(n, ...)``, as the network wants them::

    folded = fold_batchnorm(network, images[:1])
    layers = layers_in_order(folded, images[:1])
    menu = (2, 3, 4, 6, 8)
    scores = score(folded, *layer_options(layers, menu), images).weights
    losses = expected_losses(layers, menu, scores, compensated_shares(folded, images))
    sizes = [layer.weight.numel() for layer in layers.values()]
    costs = [[bits * size for bits in menu] for size in sizes]
    best = solve([losses[name] for name in layers], [costs], [4 * sum(sizes)])
    bits = {name: menu[j] for name, j in zip(layers, best.choice, strict=True)}
    quantized = quantize_in_turn(folded, images, bits)

``quantized.network`` computes in float what integers would; ``quantized.weights``, ``biases`` and
``ranges`` are what to build those from. The functions are those of ``harness.networks``
(``fold_batchnorm``, ``layers_in_order``), ``harness.sensitivity.curvature`` (``score``),
``harness.allocation.knapsack`` (``solve``), and here ``bits`` and ``sequential``.
"""
