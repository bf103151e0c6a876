/* @PREFIX@.c by the name that every model's source has. Build this file or @PREFIX@.c, not both; a linker for ELF that is
 * given both takes @PREFIX@.c. */
#if defined(__GNUC__) && defined(__ELF__)
#pragma weak thaw_class_names
#pragma weak thaw_predict
#pragma weak thaw_preprocess
#endif
#include "@PREFIX@.c"
