#include <stdio.h>

int main(void)
{
    puts("Hello from a layer!");
    return 0;
}
