"""Gradients and Hessian-vector products of a loss: by autograd, by explicit formulas, or compiled."""
