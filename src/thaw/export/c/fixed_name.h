/* @PREFIX@.h by the name that every model's header has. */
#include "@PREFIX@.h"
