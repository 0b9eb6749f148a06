"""Gradients and Hessian-vector products of a loss: by autograd, written out, or compiled."""
