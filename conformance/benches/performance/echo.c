/* The least a process can be that takes part in a conversation: what it reads it says again. */
#include <unistd.h>

int main(void) {
    char said[65536];
    for (;;) {
        long count = read(0, said, sizeof said);
        if (count <= 0) return 0;
        if (write(0, said, count) != count) return 1;
    }
}
