"""Reading of trained layers from an ONNX file, for networks that are reimplemented here as modules."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn


@dataclass
class Layer:
    """Weight and bias in torch's layout, of a convolution, a linear layer, or a layer norm (scale and shift)."""

    weight: np.ndarray
    bias: np.ndarray


def read_layers(path: Path) -> list[Layer]:
    """Read all layers with constant weights in graph order, with biases and batch norms folded into them.

    Exporters write a bias as an Add node after the layer and may keep batch norms; both are found along the edges.
    """
    import onnx  # a slow import, needed only to read an ONNX file
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers: list[Layer] = []
    open_layers: dict[str, Layer] = {}  # by the name of the edge that carries the layer's output
    for node in graph.node:
        known = [constants[name] for name in node.input if name in constants]
        source = next((open_layers[name] for name in node.input if name in open_layers), None)
        layer = None
        if node.op_type == "Identity":
            layer = source
        elif node.op_type == "Conv":
            layer = Layer(known[0], known[1] if len(known) > 1 else np.zeros(len(known[0]), np.float32))
        elif node.op_type == "MatMul" and known:
            layer = Layer(known[0].T, np.zeros(known[0].shape[1], np.float32))
        elif node.op_type == "Mul" and known and known[0].ndim == 1 and known[0].size > 1:
            layer = Layer(known[0], np.zeros_like(known[0]))
        elif node.op_type == "Add" and source and known and known[0].size == source.bias.size:
            source.bias = source.bias + known[0].reshape(-1)
            layer = source
        elif node.op_type == "BatchNormalization" and source:
            epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
            scale, shift, mean, variance = (values.astype(np.float64) for values in known)
            gain = scale / np.sqrt(variance + epsilon)
            source.weight = source.weight * gain.reshape(-1, *[1] * (source.weight.ndim - 1))
            source.bias = (source.bias - mean) * gain + shift
            layer = source
        if layer is not None:
            open_layers[node.output[0]] = layer
            if layer is not source:
                layers.append(layer)
    return layers


def assign_layers(network: nn.Module, layers: list[Layer]) -> None:
    """Copy layers into a network that defines its own in the same order; surplus layers at the end are ignored.

    Raises:
        ValueError: there are too few layers, or a shape differs, so the network is not the one in the file.
    """
    modules = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm)]
    if len(modules) > len(layers):
        raise ValueError(f"{type(network).__name__} has {len(modules)} layers, the file only {len(layers)}")
    with torch.no_grad():
        for module, layer in zip(modules, layers, strict=False):
            if tuple(module.weight.shape) != layer.weight.shape:
                raise ValueError(f"{module}: the file's weight is {layer.weight.shape}")
            module.weight.copy_(torch.tensor(layer.weight))
            if module.bias is not None:
                module.bias.copy_(torch.tensor(layer.bias))
