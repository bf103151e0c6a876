/* @PREFIX@.h under a name that is the same for all models. */
#include "@PREFIX@.h"
