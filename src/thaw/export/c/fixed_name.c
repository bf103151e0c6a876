/* @PREFIX@.c under a name that is the same for all models. Build this file or @PREFIX@.c, not both; with both, an ELF linker
 * uses @PREFIX@.c. */
#if defined(__GNUC__) && defined(__ELF__)
#pragma weak thaw_class_names
#pragma weak thaw_predict
#pragma weak thaw_preprocess
#endif
#include "@PREFIX@.c"
