# The helper program of the resident shell in a Linux guest on x86_64. It uses no library, so in an emulated guest it
# starts in a fifth of the time of the guest's own tools. It writes to no memory but its stack.
#
#   i PATH NUMBER   ioctl(2) on a file, with 0 as the argument: freeze, thaw, reseed
#   c SECONDS.MMM   set the clock to this time since the epoch
#   w SCRIPT        have the kernel report each write(2) to a file in /proc and /sys on descriptor 6 (fanotify(7)), and
#                   each mount on descriptor 7 (proc_pid_mountinfo(5)); then run /bin/sh SCRIPT
#   q               exit with 1 if it has reported something since the last time, else with 0
#   l LIST          print what the lines of the file LIST name, one thing on a line:
#                     f PATH   a file: a hash of its content
#                     v PATH   the same for /proc/net/ipv6_route, without its two counter columns
#                     s PATH   from lstat(2): mode, owner, group, device, size, ctime
#                     o PATH   the first four of these
#                     d PATH   the names in a folder
#                     D PATH   the folders below a folder
#                     t PATH   everything below a folder: mode, owner, group, device, and the size of files (else 0)
#                     x PATH   leave this out of what later lines D and t print
#                     p        the processes, with parent and start time; no kernel threads, no zombies, not itself
#                   and on stderr a hash of that output
#   h LIST          print only the hash
#
# Exit status: 0, or the errno(3) of the failure. Things in a list that cannot be read are printed with their errno.
#
# rebuild: as -o look.o amd64.S && objcopy -O binary -j .text look.o amd64.bin

        .intel_syntax noprefix
        .text

        .equ sys_read, 0
        .equ sys_write, 1
        .equ sys_open, 2
        .equ sys_close, 3
        .equ sys_fstat, 5
        .equ sys_lstat, 6
        .equ sys_poll, 7
        .equ sys_mmap, 9
        .equ sys_ioctl, 16
        .equ sys_dup2, 33
        .equ sys_getpid, 39
        .equ sys_execve, 59
        .equ sys_exit, 60
        .equ sys_getdents64, 217
        .equ sys_clock_settime, 227
        .equ sys_fanotify_init, 300
        .equ sys_fanotify_mark, 301

        .equ EAGAIN, 11
        .equ ENOENT, 2
        .equ READ_QUIETLY, 0x80800      # O_CLOEXEC | O_NONBLOCK
        .equ FOLDER, 0x90800            # and O_DIRECTORY
        .equ DT_DIR, 4
        .equ S_IFMT, 0xF000
        .equ S_IFREG, 0x8000
        .equ PF_KTHREAD, 0x200000
        .equ POLLPRI, 2
        .equ WRITES, 6
        .equ MOUNTS, 7

        # The variables are on the stack, below rbx.
        .equ out, -0x10000              # the output buffer, 64 KiB
        .equ data, -0x20000             # the input buffer, 64 KiB
        .equ path, -0x22000             # the current path, 8 KiB
        .equ left_out, -0x22800         # pointers to paths, 256
        .equ status, -0x22900           # struct stat
        .equ digits, -0x22920           # a number
        .equ size, 0x22a00
        .equ longest, 4000              # the longest path that is read

        # rbx  the frame          r12  the next line of the list    r13  the end of the list
        # r14  the hash           r15  how many bytes are in `out`  rbp  1: also print them
        # left_out[255] is the number of paths that are left out.

start:
        mov rbx, rsp
        cmp qword ptr [rsp], 2          # argc
        jb unknown
        mov rax, [rsp + 16]             # argv[1]
        mov al, [rax]
        cmp al, 'q'
        je quiet
        cmp qword ptr [rsp], 3
        jb unknown
        cmp al, 'i'
        je control
        cmp al, 'c'
        je clock
        cmp al, 'w'
        je watch
        xor ebp, ebp
        cmp al, 'h'
        je list
        inc ebp
        cmp al, 'l'
        je list
unknown:
        mov eax, -22                    # EINVAL
        # fall through

# Exit with -eax.
finish:
        neg eax
        mov edi, eax
        mov eax, sys_exit
        syscall

# -- i PATH NUMBER

control:
        cmp qword ptr [rsp], 4
        jb unknown
        mov rdi, [rsp + 24]
        xor esi, esi
        mov eax, sys_open
        syscall
        test eax, eax
        js finish
        mov r8d, eax
        mov rsi, [rsp + 32]
        call number
        mov edi, r8d
        mov esi, eax
        xor edx, edx
        mov eax, sys_ioctl
        syscall
        jmp finish

# rax: the decimal number at rsi; rsi: after it.
number:
        xor eax, eax
1:      movzx edx, byte ptr [rsi]
        sub edx, '0'
        cmp edx, 9
        ja 2f
        imul rax, rax, 10
        add rax, rdx
        inc rsi
        jmp 1b
2:      ret

# -- c SECONDS.MMM

clock:
        mov rsi, [rsp + 24]
        call number
        mov [rbx - 16], rax
        xor eax, eax
        cmp byte ptr [rsi], '.'
        jne 1f
        inc rsi
        call number
        imul rax, rax, 1000000
1:      mov [rbx - 8], rax
        xor edi, edi                    # CLOCK_REALTIME
        lea rsi, [rbx - 16]
        mov eax, sys_clock_settime
        syscall
        jmp finish

# -- w SCRIPT

watch:
        mov edi, 2                      # FAN_CLASS_NOTIF | FAN_NONBLOCK
        xor esi, esi
        mov eax, sys_fanotify_init
        syscall
        test eax, eax
        js finish
        mov r12d, eax
        lea r8, proc[rip]
        call mark
        lea r8, sys[rip]
        call mark
        mov esi, WRITES
        call keep
        lea rdi, mounts[rip]
        xor esi, esi                    # O_RDONLY
        mov eax, sys_open
        syscall
        test eax, eax
        js finish
        mov r12d, eax
        mov esi, MOUNTS
        call keep
        mov rax, [rsp]                  # the environment is after argv
        lea rdx, [rsp + rax * 8 + 16]
        lea rsi, [rsp + 16]             # argv[1] is $0
        lea rdi, shell[rip]
        mov eax, sys_execve
        syscall
        jmp finish

# Move the descriptor r12d to esi.
keep:
        mov edi, r12d
        mov eax, sys_dup2
        syscall
        test eax, eax
        js finish
        cmp eax, r12d
        je 1f
        mov eax, sys_close
        syscall
1:      ret

# Have writes to the file system at r8 reported on r12d.
mark:
        mov edi, r12d
        mov esi, 0x101                  # FAN_MARK_ADD | FAN_MARK_FILESYSTEM
        mov edx, 2                      # FAN_MODIFY
        mov r10, -100                   # AT_FDCWD
        mov eax, sys_fanotify_mark
        syscall
        test eax, eax
        js finish
        ret

# -- q

quiet:
        sub rsp, 0x1100
        xor r12d, r12d
1:      mov edi, WRITES
        lea rsi, [rbx - 0x1000]
        mov edx, 0x1000
        xor eax, eax                    # sys_read
        syscall
        cmp rax, -EAGAIN
        je 4f
        mov r12d, -1
        test rax, rax
        js 4f                           # the file of an event cannot be opened: the rest is reported the next time
        jz 4f
        lea r13, [rbx - 0x1000]
        lea r14, [r13 + rax]
2:      mov edi, [r13 + 16]             # its descriptor
        test edi, edi
        js 3f
        mov eax, sys_close
        syscall
3:      mov eax, [r13]                  # its length
        add r13, rax
        cmp r13, r14
        jb 2b
        jmp 1b
4:      lea rdi, [rbx - 8]              # struct pollfd
        mov dword ptr [rdi], MOUNTS
        mov dword ptr [rdi + 4], POLLPRI
        mov esi, 1
        xor edx, edx
        mov eax, sys_poll
        syscall
        test byte ptr [rbx - 2], POLLPRI
        jz 5f
        mov r12d, -1
5:      mov eax, r12d
        jmp finish

# -- l LIST, h LIST

list:
        mov rdi, [rsp + 24]
        sub rsp, size
        mov r14, 0xcbf29ce484222325     # FNV-1a, 64 bits
        xor r15d, r15d
        mov qword ptr [rbx + left_out + 255 * 8], 0
        mov esi, READ_QUIETLY
        mov eax, sys_open
        syscall
        test eax, eax
        js finish
        mov r12d, eax
        mov edi, eax
        lea rsi, [rbx + status]
        mov eax, sys_fstat
        syscall
        mov rsi, [rbx + status + 48]
        mov r13, rsi
        test rsi, rsi
        jz done
        xor edi, edi
        mov edx, 3                      # PROT_READ | PROT_WRITE
        mov r10d, 2                     # MAP_PRIVATE
        mov r8d, r12d
        xor r9d, r9d
        mov eax, sys_mmap
        syscall
        cmp rax, -4096
        ja finish
        mov r12, rax
        add r13, rax

next:
        cmp r12, r13
        jae done
        mov rsi, r12                    # from here on, a line ends with a zero
1:      cmp byte ptr [rsi], 10
        je 2f
        inc rsi
        jmp 1b
2:      mov byte ptr [rsi], 0
        mov al, [r12]
        mov r9d, 1
        lea rdi, [r12 + 2]              # its path
        lea r12, [rsi + 1]
        lea rdx, next[rip]
        push rdx
        cmp al, 'f'
        je content
        cmp al, 's'
        je one
        xor r9d, r9d
        cmp al, 'o'
        je one
        cmp al, 'p'
        je processes
        cmp al, 'x'
        je leave_out
        cmp al, 'v'
        je content
        # Folders. r9: 1 to recurse, 2 to print more than the name, 4 to print only folders.
        xor r9d, r9d
        cmp al, 'd'
        je folder
        mov r9d, 3
        cmp al, 't'
        je folder
        mov r9d, 5
        cmp al, 'D'
        je folder
        ret

done:
        call flush
        mov rax, r14
        call hex
        call newline
        lea edi, [ebp + 1]              # stdout, or stderr if the list was printed
        lea rsi, [rbx + out]
        mov edx, r15d
        mov eax, sys_write
        syscall
        xor eax, eax
        jmp finish

leave_out:
        mov rax, [rbx + left_out + 255 * 8]
        cmp rax, 255
        jae 1f
        mov [rbx + left_out + rax * 8], rdi
        inc qword ptr [rbx + left_out + 255 * 8]
1:      ret

# The file at rdi; al is f or v.
content:
        mov r8d, -1                     # the columns from here on are left out,
        cmp al, 'v'
        jne 1f
        mov r8d, 113                    # and those from 18 further on are not
1:      call say
        mov esi, READ_QUIETLY
        mov eax, sys_open
        syscall
        test eax, eax
        js failed
        mov r10d, eax                   # syscall keeps it
        mov r9, 0xcbf29ce484222325
        xor edi, edi                    # the column
2:      push rdi
        mov edi, r10d
        lea rsi, [rbx + data]
        mov edx, 0x10000
        xor eax, eax                    # sys_read
        syscall
        pop rdi
        test rax, rax
        jle 6f
        lea rsi, [rbx + data]
        lea rdx, [rsi + rax]
        mov r11, 0x100000001b3
3:      movzx eax, byte ptr [rsi]
        cmp edi, r8d
        jb 4f
        lea ecx, [r8 + 18]
        cmp edi, ecx
        jb 5f
4:      xor r9, rax
        imul r9, r11
5:      inc edi
        cmp al, 10
        jne 7f
        xor edi, edi
7:      inc rsi
        cmp rsi, rdx
        jb 3b
        jmp 2b
6:      push rax
        mov edi, r10d
        mov eax, sys_close
        syscall
        pop rax
        test rax, rax
        js failed
        mov rax, r9
        call value
        jmp newline

# Print the error eax.
failed:
        neg eax
        push rax
        mov al, ' '
        call byte_out
        mov al, '-'
        call byte_out
        pop rax
        call hex
        jmp newline

# Print the lstat(2) of rdi; only mode, owner, group and device if r9 is 0.
one:
        call say
        lea rsi, [rbx + status]
        mov eax, sys_lstat
        syscall
        test eax, eax
        js failed
        call owner
        test r9d, r9d
        jz newline
        mov rax, [rbx + status + 48]    # size
        call value
        mov rax, [rbx + status + 104]   # ctime
        call value
        mov rax, [rbx + status + 112]
        call value
        jmp newline

# Mode, owner, group and device of `status`.
owner:
        mov eax, [rbx + status + 24]
        call value
        mov eax, [rbx + status + 28]
        call value
        mov eax, [rbx + status + 32]
        call value
        mov rax, [rbx + status + 40]
        jmp value

# Print the folder at rdi, as r9 says.
folder:
        lea rsi, [rbx + path]
        xor ecx, ecx
1:      mov al, [rdi + rcx]
        mov [rsi + rcx], al
        test al, al
        jz walk
        inc ecx
        cmp ecx, longest
        jb 1b
        ret

# Print the content of the folder `path`, which is ecx bytes long.
walk:
        push r12
        push r13
        push rcx
        lea rdi, [rbx + path]
        mov esi, FOLDER
        mov eax, sys_open
        syscall
        test eax, eax
        jns 1f
        mov r12d, eax
        lea rdi, [rbx + path]
        call say
        mov eax, r12d
        call failed
        jmp 9f
1:      push rax
        sub rsp, 0x1000
        # [rsp + 0x1000] the descriptor, [rsp + 0x1008] the length of the path
2:      mov edi, [rsp + 0x1000]
        mov rsi, rsp
        mov edx, 0x1000
        mov eax, sys_getdents64
        syscall
        test rax, rax
        jle 8f
        mov r12, rsp
        lea r13, [rsp + rax]
3:      lea rsi, [r12 + 19]             # d_name
        cmp word ptr [rsi], '.'         # and a zero
        je 7f
        cmp word ptr [rsi], 0x2e2e
        jne 4f
        cmp byte ptr [rsi + 2], 0
        je 7f
4:      test r9d, 4
        jz 5f
        cmp byte ptr [r12 + 18], DT_DIR
        jne 7f
5:      mov ecx, [rsp + 0x1008]
        lea rdi, [rbx + path]
        mov byte ptr [rdi + rcx], '/'
        inc ecx
6:      mov al, [rsi]
        mov [rdi + rcx], al
        inc rsi
        inc ecx
        cmp ecx, longest
        jae 7f
        test al, al
        jnz 6b
        dec ecx
        test r9d, 1
        jz 61f
        call is_left_out
        je 7f
61:     push rcx
        call say
        test r9d, 2
        jz 63f
        lea rsi, [rbx + status]
        mov eax, sys_lstat
        syscall
        test eax, eax
        js 63f                          # it was just removed
        call owner
        mov eax, [rbx + status + 24]
        and eax, S_IFMT
        sub eax, S_IFREG
        mov eax, 0
        cmove rax, [rbx + status + 48]  # a folder's size is meaningless, and a device has none
        call value
63:     call newline
        pop rcx
        test r9d, 1
        jz 7f
        cmp byte ptr [r12 + 18], DT_DIR
        jne 7f
        call walk
7:      movzx eax, word ptr [r12 + 16]  # d_reclen
        add r12, rax
        cmp r12, r13
        jb 3b
        jmp 2b
8:      mov edi, [rsp + 0x1000]
        mov eax, sys_close
        syscall
        add rsp, 0x1008
9:      pop rcx
        pop r13
        pop r12
        mov byte ptr [rbx + path + rcx], 0
        ret

# Equal if `path`, at rdi, is left out. Changes rax, rdx, r8, r10, r11.
is_left_out:
        mov r8, [rbx + left_out + 255 * 8]
1:      sub r8, 1
        jb 4f
        mov rdx, [rbx + left_out + r8 * 8]
        xor r10d, r10d
2:      mov al, [rdx + r10]
        cmp al, [rdi + r10]
        jne 1b
        inc r10
        test al, al
        jnz 2b
        ret
4:      or r8, 1                        # not equal: r8 was below zero
        ret

# -- p

processes:
        lea rdi, proc[rip]
        mov esi, FOLDER
        mov eax, sys_open
        syscall
        test eax, eax
        js failed
        push r12
        push r13
        push rax
        mov eax, sys_getpid
        syscall
        push rax
        sub rsp, 0x1000
        # [rsp + 0x1000] our own pid, [rsp + 0x1008] the descriptor of /proc
1:      mov edi, [rsp + 0x1008]
        mov rsi, rsp
        mov edx, 0x1000
        mov eax, sys_getdents64
        syscall
        test rax, rax
        jle 9f
        mov r12, rsp
        lea r13, [rsp + rax]
2:      lea rsi, [r12 + 19]
        mov al, [rsi]
        sub al, '0'
        cmp al, 9
        ja 8f
        call number
        cmp eax, [rsp + 0x1000]
        je 8f
        # /proc/N/stat
        lea rdi, [rbx + path]
        mov dword ptr [rdi], 0x6f72702f # /pro
        mov word ptr [rdi + 4], 0x2f63  # c/
        lea rsi, [r12 + 19]
        mov ecx, 6
3:      mov al, [rsi]
        test al, al
        jz 4f
        mov [rdi + rcx], al
        inc rsi
        inc ecx
        jmp 3b
4:      mov dword ptr [rdi + rcx], 0x6174732f   # /sta
        mov word ptr [rdi + rcx + 4], 't'
        mov esi, READ_QUIETLY
        mov eax, sys_open
        syscall
        test eax, eax
        js 8f                           # it has just exited
        mov r10d, eax
        mov edi, eax
        lea rsi, [rbx + data]
        mov edx, 0x1000
        xor eax, eax                    # sys_read
        syscall
        push rax
        mov edi, r10d
        mov eax, sys_close
        syscall
        pop rax
        test rax, rax
        jle 8f
        call process
8:      movzx eax, word ptr [r12 + 16]
        add r12, rax
        cmp r12, r13
        jb 2b
        jmp 1b
9:      mov edi, [rsp + 0x1008]
        mov eax, sys_close
        syscall
        add rsp, 0x1010
        pop r13
        pop r12
        ret

# The process whose stat is in `data`, rax bytes: "PID (NAME) STATE PARENT …", see proc(5).
process:
        lea rsi, [rbx + data]
        mov byte ptr [rsi + rax], 0
        lea r8, [rsi + rax]
1:      dec r8
        cmp r8, rsi
        jbe 9f
        cmp byte ptr [r8], ')'          # the last one: there may be some in the name
        jne 1b
        mov al, [r8 + 2]
        cmp al, 'Z'
        je 9f
        cmp al, 'X'
        je 9f
        mov rsi, r8
        mov ecx, 7                      # flags
        call field
        test eax, PF_KTHREAD
        jnz 9f
        lea rsi, [rbx + data]
        mov rdx, r8
        sub rdx, rsi
        inc rdx
        push r8
        lea rsi, a_process[rip]
        push rdx
        mov edx, 8
        call emit
        pop rdx
        lea rsi, [rbx + data]
        call emit
        mov rsi, [rsp]
        mov ecx, 2                      # its parent
        call field
        call value
        pop rsi
        mov ecx, 20                     # its start time
        call field
        call value
        jmp newline
9:      ret

# rax: the number in field ecx of those after rsi.
field:
1:      inc rsi
        cmp byte ptr [rsi], 0
        je 2f
        cmp byte ptr [rsi], ' '
        jne 1b
        dec ecx
        jnz 1b
        inc rsi
2:      jmp number

# -- output

# Print the path at rdi; keeps rdi, rcx and r8 to r10.
say:
        push rcx
        mov rsi, rdi
        xor edx, edx
1:      cmp byte ptr [rdi + rdx], 0
        je 2f
        inc edx
        cmp edx, longest
        jb 1b
2:      call emit
        pop rcx
        ret

# Print a space and rax as a hexadecimal number.
value:
        push rax
        mov al, ' '
        call byte_out
        pop rax
# Print rax as a hexadecimal number.
hex:
        lea rsi, [rbx + digits + 16]
        xor edx, edx
1:      mov ecx, eax
        and ecx, 15
        add cl, '0'
        cmp cl, '9'
        jbe 2f
        add cl, 'a' - '0' - 10
2:      dec rsi
        mov [rsi], cl
        inc edx
        shr rax, 4
        jnz 1b
        jmp emit

newline:
        mov al, 10
# Print the byte al.
byte_out:
        mov [rbx + digits], al
        lea rsi, [rbx + digits]
        mov edx, 1
# Print rdx bytes at rsi, at most 4 KiB. Changes rax, rcx, rdx, rsi, r11.
emit:
        lea rax, [r15 + rdx]
        cmp rax, 0x10000
        jb 1f
        call flush
1:      test edx, edx
        jz 2f
        mov al, [rsi]
        mov [rbx + out + r15], al
        inc rsi
        inc r15
        dec edx
        jmp 1b
2:      ret

# Hash and print the content of `out`.
flush:
        push rsi
        push rdx
        push rdi
        lea rsi, [rbx + out]
        mov r11, 0x100000001b3
        lea rdx, [rsi + r15]
1:      cmp rsi, rdx
        jae 2f
        movzx eax, byte ptr [rsi]
        xor r14, rax
        imul r14, r11
        inc rsi
        jmp 1b
2:      test ebp, ebp
        jz 4f
        lea rsi, [rbx + out]
        mov rdx, r15
        mov edi, 1
3:      test rdx, rdx
        jz 4f
        mov eax, sys_write
        syscall
        test rax, rax
        jle finish
        add rsi, rax
        sub rdx, rax
        jmp 3b
4:      xor r15d, r15d
        pop rdi
        pop rdx
        pop rsi
        ret

proc:   .asciz "/proc"
sys:    .asciz "/sys"
mounts: .asciz "/proc/self/mountinfo"
shell:  .asciz "/bin/sh"
a_process: .ascii "process "
