// belfry is a distributed job scheduler in one program: cron for a cluster of
// machines. It speaks Dkron's REST API.
//
// A tour of the source, in the order in which a change travels: main.go starts and stops the parts; api.go serves
// requests; scheduler.go decides what is due and where it runs; cluster.go replicates every decision in one log;
// store.go keeps the log, and the state that follows from it, in SQLite; executor.go runs jobs and reports results.
package main

import (
	"bytes"
	linked "container/list"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

const version = "0.1.0"

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

const usage = `belfry: a job scheduler, cron for a cluster.

  belfry                 run one server: API and page on 127.0.0.1:8080, data in ./belfry.data
  belfry agent [flags]   run a node; "belfry agent -h" lists the flags
  belfry keygen          print a random cluster key for --encrypt-file
  belfry recover         make a new cluster of one server, if the majority of the old one is lost for good
  belfry version         print the version
  belfry help            print this text

These act on the running node at --http-addr (default 127.0.0.1:8080):

  belfry leave                            take the node out of its cluster and stop it
  belfry raft list-peers                  list the servers: leader, voters, status
  belfry raft remove-peer --peer-id ID    remove a server that is lost for good from the voters
  belfry acl bootstrap                    create the first management token, on the server's machine
  belfry acl policy apply --name N --rules-file F
  belfry acl policy list|info|delete      show or delete policies
  belfry acl token create --name N --type client|management --policy P
  belfry acl token list|info|delete       show or delete tokens

With access control they need a token: --token, --token-file or BELFRY_TOKEN.
`

func main() {
	if os.Getpid() == 1 {
		os.Exit(runAsInit())
	}
	os.Exit(commandLine(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// runAsInit is process 1 of a container: it starts the program as its only child, forwards signals to it, and reaps
// orphans. It returns the exit status of the child; when process 1 exits, the kernel kills all others.
func runAsInit() int {
	guardProcess() // the child logs an error
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "belfry: %v\n", err)
		return exitError
	}
	child, err := os.StartProcess(self, os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true}, // or Ctrl-C in a terminal would signal it twice
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "belfry: %v\n", err)
		return exitError
	}
	go func() {
		for s := range signals {
			child.Signal(s) // fails if it has ended
		}
	}()
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, 0, nil); {
		case err != nil && err != syscall.EINTR:
			return exitError
		case pid == child.Pid && status.Signaled():
			return 128 + int(status.Signal()) // as shells do
		case pid == child.Pid:
			return status.ExitStatus()
		}
	}
}

// prctlNumbers are the numbers of the prctl system call by GOARCH; package syscall has them on Linux only.
var prctlNumbers = map[string]uintptr{
	"386": 172, "amd64": 157, "arm": 172, "arm64": 167, "loong64": 167, "ppc64le": 171, "riscv64": 167, "s390x": 172,
}

// guardProcess hides this process's memory, environment and open files in /proc from other processes of its user, such
// as jobs, but not from root. It does not protect files on disk. It also keeps child processes from inheriting
// descriptors other than the standard ones.
func guardProcess() error {
	inherited, _ := os.ReadDir("/dev/fd") // missing without a mounted /dev or /proc
	for _, entry := range inherited {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	const setDumpable = 4
	prctl, ok := prctlNumbers[runtime.GOARCH]
	if runtime.GOOS != "linux" || !ok {
		return errors.ErrUnsupported
	}
	if _, _, errno := syscall.RawSyscall(prctl, setDumpable, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// commandLine executes the command in args, without the program's name, and returns the exit status.
func commandLine(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = append([]string{"agent"}, alone(environ)...)
	}
	command, rest := args[0], args[1:]
	switch {
	case isHelp(command):
		command = "help"
	case strings.TrimLeft(command, "-") == "version":
		command = "version"
	}
	switch command {
	case "agent":
		return runAgent(ctx, rest, environ, stdout, stderr)
	case "acl":
		return runACL(ctx, rest, environ, stdout, stderr)
	case "leave", "raft":
		return runRemote(ctx, args, environ, stdout, stderr)
	case "recover":
		return runRecover(rest, environ, stdout, stderr)
	case "keygen":
		return runPrint(command, rest, newKey(), stdout, stderr)
	case "version":
		return runPrint(command, rest, "belfry "+version+"\n", stdout, stderr)
	case "help":
		if len(rest) > 0 && !isHelp(rest[0]) {
			return commandLine(ctx, append(slices.Clone(rest), "-h"), environ, stdout, stderr)
		}
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	fmt.Fprintf(stderr, "belfry: there is no command %q; these are the commands:\n\n%s", command, usage)
	return exitUsage
}

// alone returns the flags of "belfry" without arguments: those of a server that bootstraps a cluster of one, unless the
// environment says otherwise.
func alone(environ []string) []string {
	if _, server, ok := variable(environ, "server"); ok {
		if on, err := strconv.ParseBool(server); err != nil || !on {
			return nil
		}
	}
	for _, name := range []string{"bootstrap-expect", "join", "retry-join"} {
		if _, _, ok := variable(environ, name); ok {
			return []string{"--server"}
		}
	}
	return []string{"--server", "--bootstrap-expect=1"}
}

// isHelp reports whether an argument asks for help.
func isHelp(word string) bool {
	return slices.Contains([]string{"help", "-h", "-help", "--help"}, word)
}

// usageOf returns the lines of usage about a command.
func usageOf(command string) string {
	var b strings.Builder
	for line := range strings.Lines(usage) {
		if strings.HasPrefix(line, "  belfry "+command+" ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// runPrint executes a command that takes no arguments and prints text.
func runPrint(command string, args []string, text string, stdout, stderr io.Writer) int {
	switch {
	case len(args) > 0 && isHelp(args[0]):
		text = usageOf(command)
	case len(args) > 0:
		fmt.Fprintf(stderr, "belfry: %q: \"belfry %s\" takes no arguments\n", args[0], command)
		return exitUsage
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitError
	}
	return exitOK
}

// parseFlags parses the flags of a command, and takes those not given from the environment. It refuses other arguments.
// On -h it writes the flags to help and returns flag.ErrHelp.
func parseFlags(fs *flag.FlagSet, args, environ []string, help io.Writer) error {
	fs.SetOutput(io.Discard) // package flag would print each error as well, followed by all flags
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(help)
		fs.Usage()
		return err
	} else if err != nil {
		return fmt.Errorf("%w; \"%s -h\" lists the flags", err, fs.Name())
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is not a flag; \"%s -h\" lists them", fs.Arg(0), fs.Name())
	}
	return fromEnvironment(fs, environ)
}

// runAgent runs a node until ctx is done or a signal arrives.
func runAgent(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args, environ, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitUsage
	}
	ctx, stop := firstSignal(ctx)
	defer stop()
	defer outliveReaders()()
	out, log := newLines(stdout), newLines(stderr)
	defer out.close()
	defer log.close()
	if err := serve(ctx, cfg, out, log); err != nil {
		fmt.Fprintf(log, "belfry: %v\n", err)
		return exitError
	}
	return exitOK
}

// onHangup calls fn on every SIGHUP until stop is called; stop waits for a running call.
func onHangup(fn func()) (stop func()) {
	signals, end, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-signals:
				fn()
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(end)
		<-ended
	}
}

// outliveReaders keeps a closed stdout or stderr from ending the process until stop is called: writes fail instead.
// SIGPIPE is caught rather than ignored, because the commands of jobs would inherit an ignored one.
func outliveReaders() (stop func()) {
	signals := make(chan os.Signal, 1) // never read
	signal.Notify(signals, syscall.SIGPIPE)
	return func() { signal.Stop(signals) }
}

const (
	linesMax      = 16_384      // queued
	linesBytesMax = 4 << 20     // of all queued lines: room for several outputs from the processor log
	linesPatience = time.Second // for writing the queue when the program ends
)

// lines writes lines in the background, so a slow reader never blocks the program. It drops and counts lines while the
// queue is full, and logs their number when there is room again.
type lines struct {
	queue   chan []byte  // a nil line is the last
	waiting atomic.Int64 // bytes in queue
	dropped atomic.Int64
	ended   chan struct{}
}

func newLines(w io.Writer) *lines {
	l := &lines{queue: make(chan []byte, linesMax), ended: make(chan struct{})}
	go l.run(w)
	return l
}

// Write queues a line. It never fails and never blocks.
func (l *lines) Write(line []byte) (int, error) {
	if l.waiting.Add(int64(len(line))) <= linesBytesMax {
		select {
		case l.queue <- append([]byte{}, line...):
			return len(line), nil
		default:
		}
	}
	l.waiting.Add(-int64(len(line)))
	l.dropped.Add(1)
	return len(line), nil
}

func (l *lines) run(w io.Writer) {
	defer close(l.ended)
	log := slog.New(slog.NewTextHandler(w, nil))
	for line := range l.queue {
		if line == nil {
			return
		}
		w.Write(line) // there is nowhere to report an error
		if l.waiting.Add(-int64(len(line))); len(l.queue) > linesMax/2 {
			continue
		}
		if n := l.dropped.Swap(0); n > 0 {
			log.Warn("lines were dropped here, because the reader was too slow", "lines", n)
		}
	}
}

// close waits until the queue is written, at most linesPatience.
func (l *lines) close() {
	patience := time.NewTimer(linesPatience)
	defer patience.Stop()
	select {
	case l.queue <- nil:
	case <-patience.C:
		return
	}
	select {
	case <-l.ended:
	case <-patience.C:
	}
}

// firstSignal returns a context that ends on the first SIGINT or SIGTERM. A second one kills the process.
func firstSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals)
		cancel()
	}()
	return ctx, cancel
}

// config holds the settings of a node, from flags or environment variables.
type config struct {
	Server          bool
	BootstrapExpect int // servers that bootstrap the cluster together
	NodeName        string
	nodeNamed       bool   // NodeName was given; otherwise it is the host's name
	BindAddr        string // host:port of the cluster plane
	AdvertiseAddr   string // host:port that other nodes connect to; "": BindAddr
	Encrypt         string // cluster key, base64; "": the one in the data directory
	EncryptFile     string // file with the cluster key
	Join            []string
	RetryJoin       []string
	RetryInterval   time.Duration // between attempts to join
	RetryMax        int           // attempts to join before the node gives up; 0: no limit
	RaftMultiplier  int           // of all election timeouts
	HTTPAddr        string        // host:port of API and page
	HTTPPrefix      string        // path of API and page; "": the root
	ACL             bool          // requests to the API need a token
	Insecure        bool          // allow the API on a non-loopback address without access control
	DataDir         string
	LogLevel        slog.Level
	Tags            map[string]string
	Datacenter      string
	Region          string
	Timezone        string        // default zone of jobs; used only when the cluster is created
	CatchupWindow   time.Duration // maximum age at which an overdue tick still runs
	ExecutionsKept  int           // finished executions kept of each job
	AuditKept       time.Duration // maximum age of the audit trail
	AuditKeptBytes  int64         // maximum size of the audit trail
	LostAfter       time.Duration // without contact to its node, after which an execution is lost
	TLS             tlsFiles      // of the API
	AllowedHosts    []string      // accepted in Host, besides NodeName
	CORSOrigins     []string      // of other pages that may use the API
	Limits          nodeLimits    // what jobs may do here
	ShutdownGrace   time.Duration // for running executions to end when the node stops
	Unused          []string      // environment variables with our prefix that match no flag

	host host
}

// host is what a node uses of its machine besides files and time. The zero value is the real machine; the simulation of
// whole servers has its own.
type host struct {
	listen func(network, address string) (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	chance func() uint64
	shell  func(ctx context.Context, o *order, out io.Writer) error // see executorConfig
	disk   func(durable bool, tx func() error) error                // see store
	made   func(*parts)                                             // called with the parts before the node runs
}

const (
	deliverPatience = 2 * time.Second      // for delivering the last results when the node stops
	handOverPause   = time.Second          // between attempts to transfer leadership when the node stops
	deliverPause    = 5 * time.Millisecond // between checks whether all results are delivered
	secretPause     = 5 * time.Second      // between checks whether the bootstrap secret is still needed
)

// Bounds of the catch-up window. The minimum exists because every tick fires a little late, after an election by some
// seconds, and must not be recorded as missed for that; the maximum, because ticks in the window are decided singly.
const (
	catchupWindowMin = 10 * time.Second
	catchupWindowMax = 24 * time.Hour
)

// parseConfig parses flags, and takes those not given from the environment: BELFRY_ or, as in Dkron, DKRON_, followed
// by the flag's name in capitals. On -h it writes the flags to help and returns flag.ErrHelp.
func parseConfig(args, environ []string, help io.Writer) (config, error) {
	var cfg config
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	fs := flag.NewFlagSet("belfry agent", flag.ContinueOnError)
	fs.BoolVar(&cfg.Server, "server", false, "keep state and lead; without it the node only runs jobs")
	fs.IntVar(&cfg.BootstrapExpect, "bootstrap-expect", 0, "`number` of servers that bootstrap the cluster together")
	fs.StringVar(&cfg.NodeName, "node-name", host, "unique `name` of this node")
	fs.StringVar(&cfg.BindAddr, "bind-addr", "127.0.0.1:8946", "`address` of the cluster plane")
	fs.StringVar(&cfg.AdvertiseAddr, "advertise-addr", "",
		"`address` at which other nodes reach the cluster plane, if it is not --bind-addr")
	fs.StringVar(&cfg.Encrypt, "encrypt", "",
		"cluster `key`, the same on all nodes; other users can see it in the list of processes, so prefer --encrypt-file")
	fs.StringVar(&cfg.EncryptFile, "encrypt-file", "", "`file` with the cluster key, the same on all nodes; "+
		"\"belfry keygen\" generates one. By default a node generates its own, "+keyFile+" in --data-dir")
	fs.Func("join",
		"`address` of another node's cluster plane; may be repeated. The node does not start unless one responds",
		list(&cfg.Join))
	fs.Func("retry-join", "`address` as in --join, but the node keeps trying; may be repeated", list(&cfg.RetryJoin))
	fs.DurationVar(&cfg.RetryInterval, "retry-interval", time.Second, "`time` between attempts to join")
	fs.IntVar(&cfg.RetryMax, "retry-max", 0, "`number` of attempts to join before the node gives up; 0: no limit")
	fs.IntVar(&cfg.RaftMultiplier, "raft-multiplier", 1,
		"`factor` of election timeouts, 1 to 10; use more on slow networks")
	fs.StringVar(&cfg.HTTPAddr, "http-addr", "127.0.0.1:8080", "`address` of API and page")
	fs.StringVar(&cfg.HTTPPrefix, "http-prefix", "",
		"`path` of API and page, such as /belfry, for a proxy that serves other things on the same host")
	fs.BoolVar(&cfg.ACL, "acl", false,
		"require tokens for the API; on all nodes or on none. \"belfry acl bootstrap\" creates the first token")
	fs.BoolVar(&cfg.Insecure, "insecure", false, "allow the API without access control on an address that others can "+
		"reach: whoever can reach it can run commands here")
	fs.StringVar(&cfg.DataDir, "data-dir", "belfry.data", "`directory` of the database and of undelivered results")
	fs.TextVar(&cfg.LogLevel, "log-level", slog.LevelInfo, "lowest `level` that is logged: debug, info, warn or error")
	fs.Func("tag", "`key=value` by which jobs select this node; may be repeated", func(s string) error {
		var tags []string
		if err := list(&tags)(s); err != nil {
			return err
		}
		for _, tag := range tags {
			k, v, ok := strings.Cut(tag, "=")
			if !ok || k == "" {
				return errors.New("write it as key=value")
			}
			if cfg.Tags == nil {
				cfg.Tags = map[string]string{}
			}
			cfg.Tags[k] = v
		}
		return nil
	})
	fs.StringVar(&cfg.Datacenter, "datacenter", "dc1", "`name` of the node's data center, its tag dc")
	fs.StringVar(&cfg.Region, "region", "global", "`name` of the node's region, its tag region")
	fs.StringVar(&cfg.Timezone, "timezone", localZone(environ),
		"default time `zone` of jobs; it is fixed when the cluster is created")
	fs.DurationVar(&cfg.CatchupWindow, "catchup-window", time.Minute,
		"maximum `age` at which an overdue tick still runs; older ones are recorded as missed")
	fs.IntVar(&cfg.ExecutionsKept, "executions-keep", 100, "`number` of finished executions kept of each job")
	fs.DurationVar(&cfg.AuditKept, "audit-keep", 365*24*time.Hour, "maximum `age` of rows in the audit trail")
	fs.Int64Var(&cfg.AuditKeptBytes, "audit-keep-bytes", 256_000_000,
		"maximum `size` of the audit trail, in bytes; beyond it the oldest rows are deleted")
	fs.DurationVar(&cfg.LostAfter, "lost-after", 5*time.Minute,
		"`time` without contact to its node after which an execution is recorded as lost")
	fs.DurationVar(&cfg.ShutdownGrace, "shutdown-grace", 10*time.Second,
		"`time` that running executions have to end when the node stops")
	cfg.TLS.flags(fs, "serve the API with the certificate in this `file`",
		"require clients of the API to have a certificate signed by one in this `file`")
	fs.Func("allowed-host",
		"`name` by which clients reach the API, besides the node's name and addresses; may be repeated",
		list(&cfg.AllowedHosts))
	fs.Func("cors-origin", "`origin` such as https://ops.example.com whose pages may use the API; may be repeated",
		list(&cfg.CORSOrigins))
	fs.Func("executors", "comma-separated `names` of the executors that run here: shell, http; by default both",
		list(&cfg.Limits.Executors))
	fs.Func("allow-su", "exact `value` of su, user or user:group, that shell jobs may use; may be repeated",
		list(&cfg.Limits.AllowSu))
	fs.StringVar(&cfg.Limits.FilesDir, "files-dir", "",
		"`directory` below which the processor files writes outputs; by default files in --data-dir")
	fs.BoolVar(&cfg.Limits.AllowMetadata, "http-allow-metadata", false,
		"let http jobs reach link-local addresses and the metadata services of clouds, which give away credentials")
	fs.BoolVar(&cfg.Limits.DenyPrivate, "http-deny-private", false,
		"keep http jobs from private and loopback addresses")
	if err := parseFlags(fs, args, environ, help); err != nil {
		return cfg, err
	}
	if cfg.EncryptFile != "" {
		key, err := os.ReadFile(cfg.EncryptFile)
		if err != nil {
			return cfg, fmt.Errorf("--encrypt-file: %w", err)
		}
		if cfg.Encrypt = strings.TrimSpace(string(key)); cfg.Encrypt == "" {
			return cfg, fmt.Errorf("--encrypt-file %s: is empty; write the output of \"belfry keygen\" to it", cfg.EncryptFile)
		}
	}
	typed := slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		return name == "encrypt" && arg[0] == '-'
	})
	if typed && cfg.Limits.AllowSu != nil {
		return cfg, errors.New("--encrypt: with --allow-su, jobs of another user could read the key on this command line " +
			"and take over every node; use --encrypt-file, or BELFRY_ENCRYPT in the environment")
	}
	cfg.Unused = unused(fs, environ)
	zoneNamed := false
	fs.Visit(func(f *flag.Flag) {
		zoneNamed = zoneNamed || f.Name == "timezone"
		cfg.nodeNamed = cfg.nodeNamed || f.Name == "node-name"
	})
	if _, err := loadZone(cfg.Timezone); err != nil && !zoneNamed {
		return cfg, fmt.Errorf("TZ: %w; or name one with --timezone", err)
	}
	return cfg, cfg.validate()
}

// list returns the function for a flag that may be repeated. A value may also be a comma-separated list, which is the
// only way in an environment variable.
func list(values *[]string) func(string) error {
	return func(s string) error {
		for _, v := range strings.Split(s, ",") {
			if v = strings.TrimSpace(v); v != "" {
				*values = append(*values, v)
			}
		}
		return nil
	}
}

// fromEnvironment sets flags that were not given from their environment variables.
func fromEnvironment(fs *flag.FlagSet, environ []string) error {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var err error
	fs.VisitAll(func(f *flag.Flag) {
		key, v, ok := variable(environ, f.Name)
		if !ok || given[f.Name] || err != nil {
			return
		}
		if e := fs.Set(f.Name, v); e != nil {
			err = fmt.Errorf("%s: invalid value %q: %w", key, v, e)
		}
	})
	return err
}

var variablePrefixes = []string{"BELFRY_", "DKRON_"}

func variableName(prefix, name string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// variable returns the environment variable for a flag.
func variable(environ []string, name string) (key, value string, ok bool) {
	for _, prefix := range variablePrefixes {
		key = variableName(prefix, name)
		for _, kv := range slices.Backward(environ) { // the last one wins
			if value, ok = strings.CutPrefix(kv, key+"="); ok {
				return key, value, true
			}
		}
	}
	return "", "", false
}

// unused returns the environment variables that have our prefix but match no flag.
func unused(fs *flag.FlagSet, environ []string) []string {
	names := []string{"token", "token-file"} // for the remote commands, which may share the environment
	fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	var known, list []string
	for _, prefix := range variablePrefixes {
		for _, name := range names {
			known = append(known, variableName(prefix, name))
		}
	}
	for _, kv := range environ {
		key, _, _ := strings.Cut(kv, "=")
		looks := slices.ContainsFunc(variablePrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
		if looks && !slices.Contains(known, key) {
			list = append(list, key)
		}
	}
	return list
}

// validate returns an error that names the wrong flag and the remedy.
func (c *config) validate() error {
	if c.BootstrapExpect < 0 || c.BootstrapExpect > 0 && !c.Server {
		return errors.New("--bootstrap-expect: is the number of servers that bootstrap a cluster, and needs --server")
	}
	if !c.Server && len(c.Join)+len(c.RetryJoin) == 0 {
		return errors.New("--retry-join: a node without --server must know a server; name the address of its cluster plane")
	}
	if v, ok := c.Tags["server"]; ok && v != strconv.FormatBool(c.Server) {
		return fmt.Errorf("--tag server=%s: this tag is reserved for whether the node has --server; use another name", v)
	}
	if c.NodeName == "" || len(c.NodeName) > memberNameMax {
		return fmt.Errorf("--node-name: must have 1 to %d bytes", memberNameMax)
	}
	if err := c.validateAddrs(); err != nil {
		return err
	}
	if _, err := c.key(); err != nil {
		return fmt.Errorf("--encrypt: %w", err)
	}
	if c.RetryInterval <= 0 || c.RetryMax < 0 {
		return errors.New("--retry-interval, --retry-max: the first must be more than 0, the second at least 0")
	}
	if c.RaftMultiplier < 1 || c.RaftMultiplier > 10 {
		return errors.New("--raft-multiplier: must be between 1 and 10")
	}
	if !c.ACL && !c.Insecure && !isLoopback(c.HTTPAddr) {
		return fmt.Errorf("--http-addr %s: others could run commands here; require tokens with --acl, use a loopback "+
			"address such as 127.0.0.1:8080, or allow it with --insecure", c.HTTPAddr)
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") || c.TLS.CA != "" && c.TLS.Cert == "" {
		return errors.New("--tls-cert, --tls-key: belong together, and --tls-ca needs both")
	}
	if p := c.HTTPPrefix; p != "" && (p[0] != '/' || p == "/" || path.Clean(p) != p || (&url.URL{Path: p}).String() != p) {
		return fmt.Errorf("--http-prefix: %q must be a path such as /belfry, of letters and digits, without a trailing slash", p)
	}
	for _, origin := range c.CORSOrigins {
		var check http.CrossOriginProtection
		if err := check.AddTrustedOrigin(origin); err != nil || origin != strings.ToLower(origin) {
			return fmt.Errorf("--cors-origin: %q must be a scheme and host in lower case, such as https://ops.example.com", origin)
		}
	}
	for _, name := range c.Limits.Executors {
		if name != executorShell && name != executorHTTP {
			return fmt.Errorf("--executors: there is no executor %q; name %s, %s, or both", name, executorShell, executorHTTP)
		}
	}
	if _, err := loadZone(c.Timezone); err != nil {
		return fmt.Errorf("--timezone: %w", err)
	}
	if c.CatchupWindow < catchupWindowMin || c.CatchupWindow > catchupWindowMax {
		return fmt.Errorf("--catchup-window: must be at least %s and at most %s", catchupWindowMin, catchupWindowMax)
	}
	if c.ExecutionsKept < 1 {
		return errors.New("--executions-keep: must be at least 1")
	}
	if c.AuditKept < 0 {
		return errors.New("--audit-keep: must not be negative")
	}
	if c.AuditKeptBytes < 1_000_000 {
		return errors.New("--audit-keep-bytes: must be at least 1000000")
	}
	if c.LostAfter < 2*nodeFailed {
		return fmt.Errorf("--lost-after: must be at least %s", 2*nodeFailed)
	}
	if c.ShutdownGrace < 0 {
		return errors.New("--shutdown-grace: must not be negative")
	}
	return nil
}

func (c *config) validateAddrs() error {
	addrs := map[string][]string{
		"--http-addr": {c.HTTPAddr}, "--bind-addr": {c.BindAddr}, "--join": c.Join, "--retry-join": c.RetryJoin,
	}
	if c.AdvertiseAddr != "" {
		addrs["--advertise-addr"] = []string{c.AdvertiseAddr}
	}
	for _, flag := range sortedKeys(addrs) {
		for _, addr := range addrs[flag] {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				return fmt.Errorf("%s: %q must be host:port", flag, addr)
			}
		}
	}
	return nil
}

// key returns the cluster key that was given, nil if none was.
func (c *config) key() ([]byte, error) {
	if c.Encrypt == "" {
		return nil, nil
	}
	return decodeKey(c.Encrypt)
}

// isLoopback reports whether a host:port is a loopback address.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// localZone returns the name of this machine's zone: TZ, or that of /etc/localtime, or UTC. Package time calls it only
// "Local".
func localZone(environ []string) string {
	file := "/etc/localtime"
	for _, kv := range environ {
		zone, ok := strings.CutPrefix(kv, "TZ=")
		if zone = strings.TrimPrefix(zone, ":"); !ok || zone == "" {
			continue
		}
		if !filepath.IsAbs(zone) {
			return zone
		}
		file = zone
	}
	if zone, ok := zoneOf(file); ok {
		return zone
	}
	if path, err := filepath.EvalSymlinks(file); err == nil {
		if zone, ok := zoneOf(path); ok {
			return zone
		}
	}
	if file != "/etc/localtime" {
		return file // parseConfig reports that it is not a zone
	}
	return "UTC"
}

// zoneOf returns the name of the zone in a file of the system's time zone database.
func zoneOf(file string) (zone string, ok bool) {
	_, zone, _ = strings.Cut(file, "/zoneinfo/")
	_, err := loadZone(zone)
	return zone, zone != "" && err == nil
}

// tags returns the tags of the node: the operator's and those of every Dkron node. The plane adds those with addresses.
func (c *config) tags() map[string]string {
	tags := map[string]string{
		"role": "dkron", "dc": c.Datacenter, "region": c.Region, "version": version, "server": strconv.FormatBool(c.Server),
		"expect": strconv.Itoa(c.BootstrapExpect),
	}
	for k, v := range c.Tags {
		tags[k] = v
	}
	return tags
}

// plane returns the configuration of the cluster plane. Without --retry-join, the node tries to join only once.
func (c *config) plane(id string, incarnation uint64) planeConfig {
	key, _ := c.key() // validated
	p := planeConfig{
		record: record{
			Name: c.NodeName, ID: id, Incarnation: incarnation, Server: c.Server, Addr: c.AdvertiseAddr, HTTPAddr: c.HTTPAddr,
			Tags: c.tags(), Expect: c.BootstrapExpect,
		},
		Bind: c.BindAddr, Key: key, Dir: c.DataDir,
		Join: slices.Concat(c.Join, c.RetryJoin), JoinPause: c.RetryInterval, JoinTries: c.RetryMax,
		BeatTime: time.Second, host: c.host,
	}
	if len(c.RetryJoin) == 0 {
		p.JoinTries = 1
	}
	return p
}

// serve runs a node until ctx is done. The writers must not block.
func serve(ctx context.Context, cfg config, stdout, stderr io.Writer) (err error) {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if err := guardProcess(); err != nil {
		log.Warn("the jobs of this node can read its memory and environment, and so its secrets", "err", err)
	}
	for _, name := range cfg.Unused {
		log.Warn("this environment variable matches no flag and has no effect", "variable", name)
	}
	if info, err := os.Stat(cfg.EncryptFile); err == nil && info.Mode().IsRegular() && info.Mode()&0o004 != 0 {
		log.Warn("other users can read the cluster key, which allows to run commands on every node; chmod 600 the file",
			"file", cfg.EncryptFile)
	}
	listener, err := net.Listen("tcp", cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("--http-addr %s: cannot listen there; use another address: %w", cfg.HTTPAddr, err)
	}
	defer listener.Close()
	listener = newBoundedListener(listener, connsMax())
	cfg.HTTPAddr = listener.Addr().String()
	scheme := "http"
	hangup := func() { log.Info("SIGHUP has no effect: the API has no certificate to reload") }
	if cfg.TLS.Cert != "" {
		scheme = "https"
		certs, err := newServerTLS(cfg.TLS)
		if err != nil {
			return err
		}
		hangup = func() {
			if err := certs.reload(); err != nil {
				log.Error("the API keeps its former certificate", "err", err)
				return
			}
			log.Info("the API has reloaded its certificate")
		}
		listener = tls.NewListener(listener, &tls.Config{GetConfigForClient: certs.config})
	}
	defer onHangup(hangup)()
	greet := func() {
		if os.Geteuid() == 0 {
			log.Warn("this node runs as root, and so do the commands of its jobs; run it as a dedicated user")
		}
		fmt.Fprintf(stdout, "belfry %s: API and page at %s://%s%s, data in %s\n",
			version, scheme, cfg.HTTPAddr, cfg.HTTPPrefix, cfg.DataDir)
	}
	if cfg.Server {
		return runServer(ctx, cfg, listener, greet, log)
	}
	return runWorker(ctx, cfg, listener, greet, log)
}

// tlsFiles names the PEM files of one side of a connection; "" is none.
type tlsFiles struct {
	Cert, Key string // its own
	CA        string // certificates of which one must have signed the other side's
}

func (f *tlsFiles) flags(fs *flag.FlagSet, cert, ca string) {
	fs.StringVar(&f.Cert, "tls-cert", "", cert)
	fs.StringVar(&f.Key, "tls-key", "", "`file` with the key of --tls-cert")
	fs.StringVar(&f.CA, "tls-ca", "", ca)
}

// load reads the files. Its errors name the flag.
func (f *tlsFiles) load() (certs []tls.Certificate, roots *x509.CertPool, err error) {
	if f.Cert != "" || f.Key != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
		certs = []tls.Certificate{pair}
	}
	if f.CA == "" {
		return certs, nil, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("--tls-ca: %w", err)
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("--tls-ca: %s holds no certificate; it must have them as PEM", f.CA)
	}
	return certs, roots, nil
}

// serverTLS is the API's TLS configuration, which can be reloaded.
type serverTLS struct {
	files   tlsFiles                   // fixed
	current atomic.Pointer[tls.Config] // for new connections
}

func newServerTLS(files tlsFiles) (*serverTLS, error) {
	t := &serverTLS{files: files}
	return t, t.reload()
}

// config implements tls.Config.GetConfigForClient.
func (t *serverTLS) config(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load(), nil }

// reload reads the files again. After an error the previous configuration stays in use.
func (t *serverTLS) reload() error {
	certs, roots, err := t.files.load()
	if err != nil {
		return err
	}
	c := &tls.Config{Certificates: certs, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if roots != nil {
		c.ClientCAs, c.ClientAuth = roots, tls.RequireAndVerifyClientCert
	}
	t.current.Store(c)
	return nil
}

// parts are the parts of a node.
type parts struct {
	exec  *executor
	plane *plane
	sched *scheduler                  // nil on an agent
	clu   *cluster                    // nil on an agent
	front http.Handler                // API and page
	tend  func(context.Context) error // further background work, until its context ends
}

// newParts creates the parts that every node has, and listens on the cluster plane. agent is nil on a server.
func newParts(cfg config, id string, agent *agentDir, log *slog.Logger) (*parts, error) {
	n := &parts{tend: func(context.Context) error { return nil }}
	var err error
	n.exec, err = newExecutor(executorConfig{
		Node: cfg.NodeName, NodeID: id, DataDir: cfg.DataDir, Log: log, Limits: cfg.Limits,
		Shell: cfg.host.shell, Chance: cfg.host.chance,
	})
	if err != nil {
		return nil, err
	}
	pc := cfg.plane(id, n.exec.incarnation())
	if agent != nil {
		pc.Agent, pc.Cluster = agent, agent.node.Cluster
	}
	if pc.Key == nil {
		if pc.Key, err = ownKey(cfg.DataDir); err != nil {
			return nil, err
		}
	}
	n.plane, err = newPlane(pc, n.exec, log)
	return n, err
}

// run starts the parts from the bottom up. When ctx is done or a part fails, it stops them from the top down, so no
// part loses one that it depends on.
func (n *parts) run(ctx context.Context, cfg config, listener net.Listener, greet func(), log *slog.Logger) error {
	if cfg.host.made != nil {
		cfg.host.made(n)
	}
	if err := n.exec.endLeftovers(); err != nil { // not earlier: a node that cannot start must not kill anything
		return err
	}
	var g errgroup.Group
	failed, fail := context.WithCancel(context.Background())
	defer fail()
	stopPlane, stopDriver := spawn(&g, fail, n.plane.run), func() {}
	if n.clu != nil {
		stopDriver = spawn(&g, fail, n.clu.run)
	}
	stopReports := spawn(&g, fail, func(ctx context.Context) error { return n.exec.run(ctx, n.plane.reportToLeader) })
	stopWeb := spawn(&g, fail, webServer(listener, under(cfg.HTTPPrefix, n.front), log))
	stopTending := spawn(&g, fail, n.tend)
	greet()
	select {
	case <-ctx.Done():
		log.Info("stopping", "grace", cfg.ShutdownGrace)
	case <-failed.Done():
	}

	// 1. Accept no more requests, and finish the present ones.
	stopTending()
	stopWeb()
	// 2. Start no more executions, here or elsewhere.
	n.plane.leaving()
	stopHandOver := func() {}
	if n.clu != nil {
		n.sched.stopFiring()
		// 3. Transfer leadership. A single server leads until it stops.
		n.clu.setLeaving(context.Background(), true) // fails only if the driver has, whose error run returns
		if err := n.clu.transferLeadership(context.Background()); err != nil && len(n.clu.status().Voters) > 1 {
			log.Warn("leadership could not be transferred yet; this server tries again while it stops", "err", err)
		}
		stopHandOver = spawn(&g, fail, n.keepHandingOver)
	}
	// 4. Wait for running executions, and kill those that outlast the grace time.
	n.exec.stop(cfg.ShutdownGrace)
	// 5. Deliver the results; those that cannot be delivered in time stay on disk.
	waitUntil(deliverPatience, func() bool { _, undelivered := n.exec.counts(); return undelivered == 0 })
	stopHandOver()
	stopReports()
	// 6. Stop writing, and tell the other nodes.
	stopDriver()
	stopPlane()
	return g.Wait()
}

// keepHandingOver transfers leadership whenever this server leads, because it fires no more ticks: a transfer may fail,
// and the new leader may fail too.
func (n *parts) keepHandingOver(ctx context.Context) error {
	for pause(ctx, handOverPause) == nil {
		if n.clu.leading() && len(n.clu.status().Voters) > 1 {
			n.clu.transferLeadership(ctx) // after an error it is tried again
		}
	}
	return nil
}

func runServer(ctx context.Context, cfg config, listener net.Listener, greet func(), log *slog.Logger) (err error) {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	st, err := openStore(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	st.disk = cfg.host.disk
	own, err := st.own()
	if err != nil {
		return err
	}
	if name, err := st.ownName(own); err != nil {
		return err
	} else if name != "" && name != cfg.NodeName && !cfg.nodeNamed {
		log.Warn("the host was renamed, but this server keeps its name; set it with --node-name",
			"host", cfg.NodeName, "name", name)
		cfg.NodeName = name
	}
	if zone := st.shown.Load().timezone; zone != "" && zone != cfg.Timezone {
		log.Warn("--timezone has no effect: the default zone of jobs is fixed when the cluster is created",
			"cluster", zone, "timezone", cfg.Timezone)
	}
	if err := prepareBootstrap(cfg, st, log); err != nil {
		return err
	}
	sched := newScheduler(schedulerConfig{
		Catchup: cfg.CatchupWindow, ExecutionsKept: cfg.ExecutionsKept, Timezone: cfg.Timezone, LostAfter: cfg.LostAfter,
		AuditKept: cfg.AuditKept, AuditKeptBytes: cfg.AuditKeptBytes,
	}, st, log)
	n, err := newParts(cfg, own.ID, nil, log)
	if err != nil {
		return err
	}
	exec, p := n.exec, n.plane
	defer p.listener.Close()
	clu, err := newCluster(p, st, time.Duration(cfg.RaftMultiplier)*tickTime, sched)
	if err != nil {
		return err
	}
	sched.propose = func(ctx context.Context, c *command) (applied, error) {
		began := time.Now()
		res, err := clu.propose(ctx, c)
		if res.Index != 0 {
			sched.stats.commits.observe(time.Since(began))
		}
		return res, err
	}
	if cfg.host.chance != nil {
		sched.chance = cfg.host.chance
	}
	sched.nodes = p.nodes
	sched.start = func(node string, d dispatch) error { return p.dispatchTo(clu.leaderContext(), node, d) }
	sched.ask = func(node string, q question) (answer, error) { return p.askNode(clu.leaderContext(), node, q) }
	sched.end = func(node string, k kill) error { return p.killOn(clu.leaderContext(), node, k) }
	n.sched, n.clu = sched, clu
	n.tend = func(ctx context.Context) error { return dropBootstrap(ctx, cfg.DataDir, st, log) }
	n.front = (&api{
		node: cfg.NodeName, hosts: append(cfg.AllowedHosts, cfg.NodeName), origins: cfg.CORSOrigins,
		store: st, scheduler: sched, log: log, stopping: ctx.Done(),
		members: p.members, leader: p.leader, leading: p.leading,
		leave: func(ctx context.Context) error {
			err := p.leave(ctx)
			if err == nil {
				quit()
			}
			return err
		},
		peers: p.peers, removePeer: p.removePeer, relay: p.forward,
		health: clu.health,
		gauges: func() gauges {
			running, undelivered := exec.counts()
			return gauges{Running: running, Undelivered: undelivered, Refused: p.refused.byReason()}
		},
		output: func(ctx context.Context, node string, execution int64, follow bool, w io.Writer) error {
			return p.outputFrom(ctx, node, execution, follow, 0, w)
		},
		printed: p.printedOn,
		acl:     cfg.ACL, dir: cfg.DataDir,
	}).handler()
	p.api = n.front
	return n.run(ctx, cfg, listener, greet, log)
}

// prepareBootstrap creates the bootstrap secret if access control is on and there is no management token; otherwise it
// removes it.
func prepareBootstrap(cfg config, st *store, log *slog.Logger) error {
	managed, err := st.managed(time.Now().UnixNano())
	switch {
	case err != nil:
		return err
	case managed || !cfg.ACL:
		return removeBootstrapSecret(cfg.DataDir)
	}
	if err := writeBootstrapSecret(cfg.DataDir); err != nil {
		return fmt.Errorf("--data-dir %s: cannot write the secret for \"belfry acl bootstrap\": %w", cfg.DataDir, err)
	}
	log.Info("there is no management token yet; create one on this machine",
		"command", "belfry acl bootstrap --data-dir="+cfg.DataDir)
	return nil
}

// dropBootstrap removes the bootstrap secret once there is a management token. The token may have been created with the
// secret of another server, so it polls.
func dropBootstrap(ctx context.Context, dir string, st *store, log *slog.Logger) error {
	for pause(ctx, secretPause) == nil {
		if _, err := os.Stat(filepath.Join(dir, bootstrapFile)); err != nil {
			continue
		}
		managed, err := st.managed(time.Now().UnixNano())
		if err == nil && managed {
			err = removeBootstrapSecret(dir)
		}
		if err != nil {
			log.Warn("the used bootstrap secret could not be removed", "err", err)
		}
	}
	return nil
}

// runWorker runs an agent, a node without state: its API forwards requests to a server.
func runWorker(ctx context.Context, cfg config, listener net.Listener, greet func(), log *slog.Logger) (err error) {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	dir, err := openAgentDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	n, err := newParts(cfg, dir.node.ID, dir, log)
	if err != nil {
		return err
	}
	defer n.plane.listener.Close()
	n.front = (&api{
		node: cfg.NodeName, hosts: append(cfg.AllowedHosts, cfg.NodeName), origins: cfg.CORSOrigins,
		log: log, stopping: ctx.Done(),
		leave:  func(ctx context.Context) error { defer quit(); return n.plane.leave(ctx) },
		relay:  n.plane.forward,
		health: n.plane.health,
		acl:    cfg.ACL,
	}).relayHandler()
	return n.run(ctx, cfg, listener, greet, log)
}

// webServer returns a function that serves API and page until its context ends.
func webServer(listener net.Listener, handler http.Handler, log *slog.Logger) func(context.Context) error {
	web := &http.Server{
		Handler: handler, MaxHeaderBytes: headBytesMax,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return func(ctx context.Context) error { return serveUntil(ctx, web, listener) }
}

// serveUntil serves until ctx is done, and then gives the present requests a second to finish.
func serveUntil(ctx context.Context, web *http.Server, listener net.Listener) error {
	web.ConnState, web.ConnContext = noteConnState, withConn
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if web.Shutdown(drain) != nil {
		web.Close()
	}
	<-ended // always http.ErrServerClosed
	return nil
}

// connsMax returns the most connections that one listener may have: a fifth of the descriptors that this process may
// open (Go raises the soft limit at start). The API and the plane have a fifth each, executions two fifths, and the
// database and outgoing connections the rest.
func connsMax() int {
	files := syscall.Rlimit{Cur: 1_024} // if Getrlimit fails
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	return int(min(files.Cur/5, 100_000))
}

// A connRank orders connections by how late they are closed in favour of new ones.
type connRank int

const (
	connIdle    connRank = iota // between requests
	connWaiting                 // no complete request header yet, or not admitted
	connReading                 // an admitted GET, which may take any time, or a request whose body is incomplete
	connWriting                 // an admitted request that is complete and not a GET; never closed for a new connection
)

// boundedListener accepts every connection. With more than max, it closes the one that has been longest in the lowest
// rank. So clients that only connect, or never finish, keep nobody out and take no descriptors from executions.
type boundedListener struct {
	net.Listener
	max int

	mu    sync.Mutex
	count int                          // guarded by mu
	ranks [connWriting + 1]linked.List // of *boundedConn, the oldest in its rank first; guarded by mu
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	rank     connRank        // guarded by listener.mu
	place    *linked.Element // in its rank; nil once closed; guarded by listener.mu
}

func newBoundedListener(l net.Listener, max int) *boundedListener {
	return &boundedListener{Listener: l, max: max}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn, listener: l, rank: connWaiting}
	if victim := l.add(c); victim != nil {
		victim.Close() // an error changes nothing: it has given up its place
	}
	return c, nil
}

// add puts a connection in its rank and returns the one to close for it, which is c itself if all others are writing.
func (l *boundedListener) add(c *boundedConn) (victim *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count++; l.count > l.max {
		for rank := range connWriting {
			if front := l.ranks[rank].Front(); front != nil && victim == nil {
				victim = front.Value.(*boundedConn)
			}
		}
		if victim == nil {
			victim = c
		}
	}
	c.place = l.ranks[c.rank].PushBack(c)
	return victim
}

// enter moves a connection to a rank. Within a request the rank only rises.
func (c *boundedConn) enter(rank connRank) {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.place == nil || rank < c.rank && rank != connIdle {
		return
	}
	c.listener.ranks[c.rank].Remove(c.place)
	c.rank, c.place = rank, c.listener.ranks[rank].PushBack(c)
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.listener.mu.Lock()
	if c.place != nil {
		c.listener.ranks[c.rank].Remove(c.place)
		c.listener.count--
		c.place = nil
	}
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// noteConnState implements http.Server.ConnState.
func noteConnState(conn net.Conn, state http.ConnState) {
	c, ok := bounded(conn)
	switch {
	case !ok:
	case state == http.StateActive:
		c.enter(connWaiting) // for the rest of the header
	case state == http.StateIdle:
		c.enter(connIdle)
	}
}

func bounded(conn net.Conn) (*boundedConn, bool) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*boundedConn)
	return c, ok
}

type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	c, _ := bounded(conn)
	return context.WithValue(ctx, connKey{}, c)
}

// connAdmitted raises the rank of a request's connection after its admission. A request with a body reaches connWriting only
// when the body is complete: otherwise a few clients that withhold it would keep everybody out.
func connAdmitted(r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(*boundedConn)
	switch {
	case c == nil:
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		c.enter(connReading)
	case r.ContentLength == 0:
		c.enter(connWriting)
	default:
		c.enter(connReading)
		r.Body = &upload{r.Body, c}
	}
}

// upload is the body of an admitted request.
type upload struct {
	io.ReadCloser
	conn *boundedConn
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err == io.EOF {
		u.conn.enter(connWriting)
	}
	return n, err
}

// waitUntil returns once done returns true, or after patience.
func waitUntil(patience time.Duration, done func() bool) {
	ticker := time.NewTicker(deliverPause)
	defer ticker.Stop()
	for end := time.After(patience); !done(); {
		select {
		case <-ticker.C:
		case <-end:
			return
		}
	}
}

// spawn runs fn in g, and calls fail if fn returns an error. stop cancels fn's context and waits for it.
func spawn(g *errgroup.Group, fail func(), fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	g.Go(func() error {
		defer close(ended)
		err := fn(ctx)
		if err != nil {
			fail()
		}
		return err
	})
	return func() {
		cancel()
		<-ended
	}
}

const remoteTimeout = 30 * time.Second // of a command that acts on a running node

// runRemote executes a command that acts on a running node: leave, raft
// list-peers, raft remove-peer.
func runRemote(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	name := args[0]
	if args = args[1:]; name == "raft" {
		if len(args) > 0 && isHelp(args[0]) {
			fmt.Fprint(stdout, usageOf(name))
			return exitOK
		}
		if len(args) == 0 || args[0] != "list-peers" && args[0] != "remove-peer" {
			fmt.Fprintln(stderr, "belfry: write \"belfry raft list-peers\" or \"belfry raft remove-peer --peer-id ID\"")
			return exitUsage
		}
		name, args = "raft "+args[0], args[1:]
	}
	fs := flag.NewFlagSet("belfry "+name, flag.ContinueOnError)
	var node remoteNode
	node.flags(fs)
	var peer string
	if name == "raft remove-peer" {
		fs.StringVar(&peer, "peer-id", "", "`id` of the server, as list-peers shows it, or its name if no other has it")
	}
	err := parseFlags(fs, args, environ, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err == nil {
		err = node.readToken()
	}
	if err == nil && name == "raft remove-peer" && peer == "" {
		err = errors.New("--peer-id: is required; \"belfry raft list-peers\" shows the ids")
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	switch name {
	case "leave":
		_, err = node.askAll(ctx, http.MethodPost, "/v1/leave")
	case "raft list-peers":
		err = listPeers(ctx, node, stdout)
	case "raft remove-peer":
		err = removePeer(ctx, node, peer)
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitError
	}
	return exitOK
}

// remoteNode is a running node that a command acts on.
type remoteNode struct {
	addr      string // host:port of its API, or its URL
	prefix    string // path of its API, unless addr contains one
	token     string // "": none
	tokenFile string
	tls       tlsFiles
}

func (n *remoteNode) flags(fs *flag.FlagSet) {
	fs.StringVar(&n.addr, "http-addr", "127.0.0.1:8080", "`address` of the node's API, or its URL")
	fs.StringVar(&n.prefix, "http-prefix", "", "`path` of the API, unless --http-addr contains one")
	fs.StringVar(&n.token, "token", "",
		"`secret` of a token, with access control; other users can see it in the list of processes")
	fs.StringVar(&n.tokenFile, "token-file", "", "`file` with the secret of a token")
	n.tls.flags(fs, "`file` with a client certificate, if the node requires one",
		"`file` with the certificates that sign the node's; implies https, as does https:// in --http-addr")
}

// client returns an HTTP client for the node, and the URL of its API.
func (n *remoteNode) client() (*http.Client, string, error) {
	addr, secure := strings.CutPrefix(n.addr, "https://")
	addr = strings.TrimRight(strings.TrimPrefix(addr, "http://"), "/")
	if strings.HasPrefix(addr, ":") { // as in the node's own --http-addr, where it means all addresses
		addr = "127.0.0.1" + addr
	}
	if !strings.Contains(addr, "/") {
		addr += n.prefix
	}
	if !secure && n.tls == (tlsFiles{}) {
		return &http.Client{CheckRedirect: toSameNode}, "http://" + addr, nil
	}
	certs, roots, err := n.tls.load()
	if err != nil {
		return nil, "", err
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{Certificates: certs, RootCAs: roots}
	return &http.Client{Transport: t, CheckRedirect: toSameNode}, "https://" + addr, nil
}

var errElsewhere = errors.New("it redirects to another address, which would get the token; use that one if you trust it")

// toSameNode follows redirects on the same node only, because the client would send the token to any other address.
func toSameNode(r *http.Request, via []*http.Request) error {
	if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme || len(via) > redirectsMax {
		return fmt.Errorf("%w: %s", errElsewhere, r.URL.Redacted())
	}
	return nil
}

func (n *remoteNode) readToken() error {
	if n.tokenFile == "" {
		return nil
	}
	text, err := os.ReadFile(n.tokenFile)
	if err != nil {
		return fmt.Errorf("--token-file: %w", err)
	}
	n.token = strings.TrimSpace(string(text))
	return nil
}

// What a 404 means.
var (
	errNotThere = errors.New("there is none of that name; \"list\" shows all")
	errNoAPI    = errors.New("there is no belfry API below that address; see --http-prefix")
)

// ask sends a request and returns the body of the response. It sends doc as JSON; nil is no body.
func (n *remoteNode) ask(ctx context.Context, method, path string, doc any) ([]byte, error) {
	var sent io.Reader
	if doc != nil {
		text, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(text)
	}
	client, base, err := n.client()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, sent)
	if err != nil {
		return nil, err
	}
	if n.token != "" {
		r.Header.Set("X-Dkron-Token", n.token)
	}
	resp, err := client.Do(r)
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return nil, fmt.Errorf("--http-addr %s: the node's certificate is not trusted; name its CA with --tls-ca, "+
			"and use an address that is in the certificate: %w", n.addr, untrusted.Err)
	}
	if errors.Is(err, errElsewhere) {
		return nil, fmt.Errorf("--http-addr %s: %w", n.addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("--http-addr %s: no node responds there: %w", n.addr, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, rpcBytesMax))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotFound && resp.Header.Get("X-Whom") == "":
		return nil, fmt.Errorf("--http-addr %s: %w", n.addr, errNoAPI)
	case resp.StatusCode == http.StatusNotFound:
		return nil, errNotThere
	case resp.StatusCode/100 != 2:
		return nil, fmt.Errorf("the node responded with %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

// askAll is ask for a path that every node has.
func (n *remoteNode) askAll(ctx context.Context, method, path string) ([]byte, error) {
	body, err := n.ask(ctx, method, path, nil)
	if errors.Is(err, errNotThere) {
		err = fmt.Errorf("--http-addr %s: %w", n.addr, errNoAPI)
	}
	return body, err
}

// aclCommands are the subcommands of "belfry acl", with their required flags.
var aclCommands = map[string][]string{
	"bootstrap": {}, "policy apply": {"name", "rules-file"}, "policy list": {}, "policy info": {"name"}, "policy delete": {"name"},
	"token create": {"name"}, "token list": {}, "token info": {"accessor-id"}, "token delete": {"accessor-id"},
}

// runACL executes "belfry acl …" on a running node and prints the API's response, as indented JSON.
func runACL(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	name := ""
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = strings.TrimSpace(name+" "+args[0]), args[1:]
	}
	needs, ok := aclCommands[name]
	if !ok && len(args) > 0 && isHelp(args[0]) && (name == "" || strings.Contains(usageOf("acl"), "acl "+name+" ")) {
		fmt.Fprint(stdout, usageOf("acl"))
		return exitOK
	}
	if !ok {
		fmt.Fprintf(stderr, "belfry: there is no command %q; the commands of \"belfry acl\" are: %s\n",
			strings.TrimSpace("acl "+name), strings.Join(sortedKeys(aclCommands), ", "))
		return exitUsage
	}
	var node remoteNode
	var policies []string
	fs := flag.NewFlagSet("belfry acl "+name, flag.ContinueOnError)
	node.flags(fs)
	given := map[string]*string{"name": new(string), "rules-file": new(string), "accessor-id": new(string)}
	for _, f := range needs {
		fs.StringVar(given[f], f, "", "required")
	}
	dir, kind, ttl := "belfry.data", tokenClient, ""
	switch name {
	case "bootstrap":
		fs.StringVar(&dir, "data-dir", dir, "`directory` of the server, whose secret proves that you may")
	case "token create":
		fs.StringVar(&kind, "type", kind, "`type` of the token: client or management")
		fs.StringVar(&ttl, "ttl", ttl, "`time` after which it is no longer valid, such as 24h")
		fs.Func("policy", "`name` of a policy; may be given several times", list(&policies))
	}
	err := parseFlags(fs, args, environ, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	for _, f := range needs {
		if err == nil && *given[f] == "" {
			err = fmt.Errorf("--%s: is required", f)
		}
	}
	if err == nil {
		err = node.readToken()
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	noun, verb, _ := strings.Cut(name, " ")
	paths := map[string]string{"policy": "/v1/acl/policies", "token": "/v1/acl/tokens", "bootstrap": "/v1/acl/bootstrap"}
	path, id := paths[noun], "/"+url.PathEscape(*given["name"]+*given["accessor-id"])
	var response []byte
	switch verb {
	case "": // bootstrap
		var secret []byte
		if secret, err = os.ReadFile(filepath.Join(dir, bootstrapFile)); err != nil {
			err = fmt.Errorf("--data-dir %s: there is no bootstrap secret; start the server with --acl, "+
				"or use the management token if there is one already: %w", dir, err)
			break
		}
		response, err = node.ask(ctx, http.MethodPost, path, map[string]string{"Secret": strings.TrimSpace(string(secret))})
	case "apply":
		var rules []byte
		if rules, err = os.ReadFile(*given["rules-file"]); err != nil {
			err = fmt.Errorf("--rules-file: %w", err)
			break
		}
		response, err = node.ask(ctx, http.MethodPost, path+id, policy{*given["name"], string(rules)})
	case "create":
		asked := map[string]any{"Name": *given["name"], "Type": kind, "ExpirationTTL": ttl}
		if policies != nil {
			asked["Policies"] = policies
		}
		response, err = node.ask(ctx, http.MethodPost, path, asked)
	case "list":
		response, err = node.ask(ctx, http.MethodGet, path, nil)
	case "info":
		response, err = node.ask(ctx, http.MethodGet, path+id, nil)
	case "delete":
		response, err = node.ask(ctx, http.MethodDelete, path+id, nil)
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitError
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, response, "", "  ") != nil {
		pretty.Reset()
		pretty.Write(response)
	}
	if _, err := fmt.Fprintln(stdout, pretty.String()); err != nil {
		fmt.Fprintf(stderr, "belfry: it is done, but the response could not be printed: %v\n", err)
		return exitError
	}
	return exitOK
}

// peersOf returns the voters and learners that a node knows.
func peersOf(ctx context.Context, node remoteNode) ([]raftPeer, error) {
	body, err := node.askAll(ctx, http.MethodGet, "/v1/raft/peers")
	if err != nil {
		return nil, err
	}
	var peers []raftPeer
	if err := json.Unmarshal(body, &peers); err != nil {
		return nil, fmt.Errorf("the response is not from a belfry node: %w", err)
	}
	return peers, nil
}

func listPeers(ctx context.Context, node remoteNode, stdout io.Writer) error {
	peers, err := peersOf(ctx, node)
	if err != nil {
		return err
	}
	var members []memberView // without the right to list them, the status is unknown
	if body, err := node.ask(ctx, http.MethodGet, "/v1/members", nil); err == nil {
		if err := json.Unmarshal(body, &members); err != nil {
			return fmt.Errorf("the response is not from a belfry node: %w", err)
		}
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tID\tADDRESS\tSTATE\tVOTER\tSTATUS")
	for _, p := range peers {
		state, status := "follower", "unknown"
		if p.Leader {
			state = "leader"
		}
		for _, m := range members {
			if m.Name == p.Node && net.JoinHostPort(m.Addr, strconv.Itoa(m.Port)) == p.Address {
				status = m.StatusText
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%t\t%s\n", p.Node, p.ID, p.Address, state, p.Voter, status)
	}
	return w.Flush()
}

// removePeer removes a server from the voters. peer is its id, or its name if that is unique.
func removePeer(ctx context.Context, node remoteNode, peer string) error {
	peers, err := peersOf(ctx, node) // without the right to list them, peer must be an id
	if errors.Is(err, errNoAPI) {
		return err
	}
	var ids []string
	for _, p := range peers {
		if p.Node == peer {
			ids = append(ids, p.ID)
		}
	}
	switch isID := slices.ContainsFunc(peers, func(p raftPeer) bool { return p.ID == peer }); {
	case isID:
	case len(ids) == 1:
		peer = ids[0]
	case len(ids) > 1:
		return fmt.Errorf("--peer-id: the servers %s are all called %q; use an id", strings.Join(ids, " and "), peer)
	}
	if _, err = node.ask(ctx, http.MethodDelete, "/v1/raft/peers/"+url.PathEscape(peer), nil); errors.Is(err, errNotThere) {
		err = errNoServer
	}
	return err
}

// runRecover makes a stopped server the only voter of a new cluster.
func runRecover(args, environ []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("belfry recover", flag.ContinueOnError)
	dir := fs.String("data-dir", "belfry.data", "`directory` of the server")
	sure := fs.Bool("yes-i-lost-a-majority", false,
		"confirm that the other servers never come back: what only they had acknowledged is lost")
	err := parseFlags(fs, args, environ, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err == nil && !*sure:
		err = errors.New("--yes-i-lost-a-majority: is required; if a majority of the servers can be started again, start " +
			"them: recovery loses what only the others had acknowledged")
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitUsage
	}
	id := crand.Text()
	if err := recoverServer(*dir, id); err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitError
	}
	fmt.Fprintf(stdout, "This server is the only one of the new cluster %s. Start it, and then the other nodes,\n"+
		"servers and agents, with empty data directories and --retry-join.\n", id)
	return exitOK
}

func recoverServer(dir, cluster string) (err error) {
	if _, err := os.Stat(filepath.Join(dir, "belfry.db")); err != nil {
		return fmt.Errorf("--data-dir %s: there is no database: %w", dir, err)
	}
	st, err := openStore(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	return st.forceNewCluster(cluster)
}
