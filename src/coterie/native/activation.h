/* Activation functions by number, as the caller gives them. */
#ifndef COTERIE_ACTIVATION_H
#define COTERIE_ACTIVATION_H

enum { COTERIE_SILU, COTERIE_GELU, COTERIE_GELU_TANH, COTERIE_RELU };

#endif
