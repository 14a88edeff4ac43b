// belfry is a distributed job scheduler in one program: cron for a cluster of
// machines. It speaks Dkron's REST API.
//
// A tour of the source, in the order in which a change travels: main.go starts and stops the parts; api.go serves
// requests; scheduler.go decides what is due and where it runs; cluster.go replicates every decision in one log;
// store.go keeps the log, and the state that follows from it, in SQLite; executor.go runs jobs and reports results.
package main

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"mime/multipart"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
)

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

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
	switch first := args[0]; {
	case isHelp(first) && len(args) > 1 && !isHelp(args[1]):
		if topic, err := web.ReadFile("web/" + args[1] + ".txt"); err == nil {
			stdout.Write(topic) // fails if nobody reads it
			return exitOK
		}
		args = append(slices.Clone(args[1:]), "-h")
	case isHelp(first):
		args = []string{"help"}
	case first == "-version" || first == "--version":
		args = append([]string{"version"}, args[1:]...)
	}
	var group []subcommand // those that begin with the first word
	for _, c := range subcommands() {
		words := strings.Fields(c.name)
		switch {
		case len(args) >= len(words) && slices.Equal(args[:len(words)], words):
			s := &invocation{ctx: ctx, environ: environ, stdout: stdout, stderr: stderr}
			return exitStatus(c.run(s, args[len(words):]), stderr)
		case words[0] == args[0]:
			group = append(group, c)
		}
	}
	switch words := strings.Join(args[:min(len(args), 1+len(group))], " "); {
	case len(group) == 0:
		fmt.Fprintf(stderr, "belfry: there is no command %q; \"belfry help\" lists the commands\n", args[0])
	case isHelp(args[len(args)-1]):
		printUsage(stdout, group)
		return exitOK
	default:
		fmt.Fprintf(stderr, "belfry: there is no command %q; these begin so:\n", words)
		printUsage(stderr, group)
	}
	return exitUsage
}

// A usageError is a mistake in the command itself: nothing was done.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// A runFailed says how a run ended, and the exit status of its command.
type runFailed struct {
	reason string
	status int
}

func (f runFailed) Error() string { return f.reason }

// exitStatus prints an error and returns the exit status for it.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	fmt.Fprintf(stderr, "belfry: %v\n", err)
	var run runFailed
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, &run):
		return run.status
	}
	return exitError
}

// printUsage prints a line for each command.
func printUsage(w io.Writer, list []subcommand) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range list {
		fmt.Fprintf(tw, "  belfry %s\t%s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	tw.Flush() // fails if nobody reads it
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

// newFlagSet returns the flags of a command. On -h they tell what it does, with an example.
func newFlagSet(name string) *flag.FlagSet {
	fs := flag.NewFlagSet("belfry "+name, flag.ContinueOnError)
	fs.Usage = func() {
		i := slices.IndexFunc(subcommands(), func(c subcommand) bool { return c.name == name })
		c := subcommands()[i]
		fmt.Fprintf(fs.Output(), "belfry %s: %s.\n\nExample:\n  belfry %s\n",
			strings.TrimSpace(name+" "+c.args), c.help, c.example)
		shown, n := flag.NewFlagSet("", flag.ContinueOnError), 0
		fs.VisitAll(func(f *flag.Flag) {
			if f.Usage != "" { // those of Dkron that mean nothing here have none
				shown.Var(f.Value, f.Name, f.Usage)
				shown.Lookup(f.Name).DefValue = f.DefValue
				n++
			}
		})
		if n > 0 {
			fmt.Fprintln(fs.Output(), "\nFlags:")
			shown.SetOutput(fs.Output())
			shown.PrintDefaults()
		}
	}
	return fs
}

// parseFlags parses the flags of a command, and takes those not given from the environment. It returns the other
// arguments, of which it wants between least and most. On -h it writes the usage to help and returns flag.ErrHelp.
func parseFlags(fs *flag.FlagSet, args, environ []string, help io.Writer, least, most int) (rest []string, err error) {
	fs.SetOutput(io.Discard) // package flag would print each error as well, followed by all flags
	usage := fs.Usage
	fs.Usage = func() {}
	for len(args) > 0 {
		if err = fs.Parse(args); err != nil {
			break
		}
		if args = fs.Args(); len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(help)
		usage()
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w; \"%s -h\" lists the flags", err, fs.Name())
	case len(rest) > most:
		return nil, fmt.Errorf("%q is one argument too many; \"%s -h\" lists all", rest[most], fs.Name())
	case len(rest) < least:
		return nil, fmt.Errorf("an argument is missing; \"%s -h\" lists all", fs.Name())
	}
	return rest, fromEnvironment(fs, environ)
}

// runAgent runs a node until the context is done or a signal arrives.
func runAgent(s *invocation, args []string) error {
	cfg, err := parseConfig(args, s.environ, s.stdout)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := firstSignal(s.ctx)
	defer stop()
	defer outliveReaders()()
	out, log := newLines(s.stdout), newLines(s.stderr)
	defer out.close()
	defer log.close()
	slog.SetDefault(cfg.logger(log)) // of what packages print with log
	for {
		if err := serve(ctx, cfg, out, log); !errors.Is(err, errAdopted) {
			return err
		}
	}
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
	keyFile         string // the file that the key is from; "": none
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
	LogFormat       string // text or json
	MetricsJobs     int    // that have metrics of their own
	Statsd          statsd
	Tags            map[string]string
	Datacenter      string
	Region          string
	Timezone        string        // default zone of jobs; used only when the cluster is created
	CatchupWindow   time.Duration // age up to which any overdue tick still runs
	Adopt           bool          // an agent follows another cluster once its own is silent
	MaxConcurrent   int           // executions of this node at once; 0: any number
	ExecutionsKept  int           // finished executions kept of each job
	FailuresKept    int           // beyond those, of the last week without success
	AuditKept       time.Duration // maximum age of the audit trail
	AuditKeptBytes  int64         // maximum size of the audit trail
	LostAfter       time.Duration // without contact to its node, after which an execution is lost
	TLS             tlsFiles      // of the API
	AllowedHosts    []string      // accepted in Host, besides NodeName
	CORSOrigins     []string      // of other pages that may use the API
	Limits          nodeLimits    // what jobs may do here
	Notify          notifyConfig  // whom the operator wants told of what
	ShutdownGrace   time.Duration // for running executions to end when the node stops
	Unused          []string      // environment variables with our prefix that match no flag
	Ignored         []string      // flags of Dkron that mean nothing here
	ConfigFile      string        // as Dkron's dkron.yml; "": none

	host host
}

// host is what a node uses of its machine besides files and time. The zero value is the real machine; the simulation of
// whole servers has its own.
type host struct {
	network
	shell func(ctx context.Context, o *order, out io.Writer) error // see executorConfig
	disk  func(durable bool, tx func() error) error                // see store
	made  func(*parts)                                             // called with the parts before the node runs
}

const (
	deliverPatience = 2 * time.Second      // for delivering the last results when the node stops
	handOverPause   = time.Second          // between attempts to transfer leadership when the node stops
	deliverPause    = 5 * time.Millisecond // between checks whether all results are delivered
	secretPause     = 5 * time.Second      // between checks whether the bootstrap secret is still needed
)

// catchupWindowMax bounds the catch-up window, because ticks in it are decided one by one.
const catchupWindowMax = 24 * time.Hour

// parseConfig parses flags, and takes those not given from the environment: BELFRY_ or, as in Dkron, DKRON_, followed
// by the flag's name in capitals. On -h it writes the flags to help and returns flag.ErrHelp.
func parseConfig(args, environ []string, help io.Writer) (config, error) {
	var cfg config
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	fs := newFlagSet("agent")
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
	fs.BoolVar(&cfg.Adopt, "adopt", false, "of an agent: follow another cluster that has the same key and its servers' addresses, "+
		"once the own one has been silent for a minute")
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
	fs.IntVar(&cfg.MetricsJobs, "metrics-jobs", 1_000, "`number` of jobs that have metrics of their own, failing ones first")
	fs.StringVar(&cfg.Statsd.Addr, "statsd-addr", "", "`address` of a statsd server that gets the metrics every 10 s")
	fs.StringVar(&cfg.Statsd.Dog, "dog-statsd-addr", "", "the same of one that reads DogStatsD")
	fs.Func("dog-statsd-tags", "`name:value` that it gets with them; may be repeated", list(&cfg.Statsd.Tags))
	fs.StringVar(&cfg.LogFormat, "log-format", "text", "`format` of the log: text or json")
	fs.TextVar(&cfg.LogLevel, "log-level", slog.LevelInfo, "lowest `level` that is logged: debug, info, warn or error")
	mapFlag(fs, "tag", &cfg.Tags, "`key=value` by which jobs select this node; may be repeated")
	fs.StringVar(&cfg.Datacenter, "datacenter", "dc1", "`name` of the node's data center, its tag dc")
	fs.StringVar(&cfg.Region, "region", "global", "`name` of the node's region, its tag region")
	fs.StringVar(&cfg.Timezone, "timezone", localZone(environ),
		"default time `zone` of jobs; it is fixed when the cluster is created")
	fs.DurationVar(&cfg.CatchupWindow, "catchup-window", time.Minute,
		"minimum `age` up to which an overdue tick still runs: half of the time to the next tick, if that is longer, up to 1h")
	fs.IntVar(&cfg.MaxConcurrent, "max-concurrent", 0, "`number` of executions that this node runs at once; 0: any number")
	fs.IntVar(&cfg.ExecutionsKept, "executions-keep", 100, "`number` of finished executions kept of each job")
	fs.IntVar(&cfg.FailuresKept, "failures-keep", 100,
		"`number` of executions without success of the last 7 days kept of each job beyond those")
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
	fs.Func("job-env", "comma-separated `names` of the variables of the node's environment that jobs get, besides belfry's own; "+
		"inherit: all, as by default; clean: PATH, HOME and LANG", list(&cfg.Limits.JobEnv))
	fs.Func("allow-su", "exact `value` of su, user or user:group, that shell jobs may use; may be repeated",
		list(&cfg.Limits.AllowSu))
	fs.StringVar(&cfg.Limits.FilesDir, "files-dir", "",
		"`directory` below which the processor files writes outputs; by default files in --data-dir")
	fs.BoolVar(&cfg.Limits.AllowMetadata, "http-allow-metadata", false,
		"let http jobs reach link-local addresses and the metadata services of clouds, which give away credentials")
	fs.BoolVar(&cfg.Limits.DenyPrivate, "http-deny-private", false,
		"keep http jobs from private and loopback addresses, after redirects too; behind a proxy only from those in URLs")
	cfg.Notify.flags(fs)
	fs.StringVar(&cfg.ConfigFile, "config", "", "`file` with flags as \"name: value\", lists, and tags as a map, like Dkron's dkron.yml; "+
		"the environment and flags come before it")
	ignored := func(name string) func(string) error {
		return func(string) error { cfg.Ignored = append(cfg.Ignored, "--"+name); return nil }
	}
	for _, name := range []string{"rpc-port", "advertise-rpc-port", "serf-reconnect-timeout", "profile", "otel-endpoint"} {
		fs.Func(name, "", ignored(name))
	}
	for _, name := range []string{"enable-prometheus", "disable-usage-stats", "ui"} {
		fs.BoolFunc(name, "", ignored(name))
	}
	if _, err := parseFlags(fs, args, environ, help, 0, 0); err != nil {
		return cfg, err
	}
	named := cfg.Encrypt
	if err := readConfig(fs, cfg.ConfigFile); err != nil {
		return cfg, err
	}
	if cfg.keyFile = cfg.EncryptFile; cfg.keyFile == "" && cfg.Encrypt != named {
		cfg.keyFile = cfg.ConfigFile
	}
	cfg.likeDkron()
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

// flags adds the flags about notices.
func (c *notifyConfig) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Webhook.URL, "notify-webhook", "",
		"`URL` that is sent a notice of each event in --notify-on, as JSON with a text that chats show")
	fs.Func("notify-on", "comma-separated `events` for --notify-webhook, of "+
		strings.Join(slices.Concat(jobEvents, clusterEvents), ", ")+"; by default all but start, end and leader", list(&c.Webhook.On))
	for prefix, h := range map[string]*hook{"": &c.Post, "pre-": &c.Pre} {
		when := map[string]string{"": "end", "pre-": "start"}[prefix]
		fs.StringVar(&h.URL, prefix+"webhook-endpoint", "", "`URL` that is sent a request at each "+when+" of an execution")
		fs.Func(prefix+"webhook-headers", "`header` of these requests, as in \"Name: value\"; may be repeated", list(&h.Headers))
		fs.StringVar(&h.Payload, prefix+"webhook-payload", "", "`template` of their body, with the values "+
			".Report .JobName .ReportingNode .StartTime .FinishedAt .Success .NodeName .Output")
	}
	fs.StringVar(&c.Cronitor.URL, "cronitor-endpoint", "", "`URL` of Cronitor's telemetry, with the key, that is sent each start and end")
	mapFlag(fs, "slack-webhook", &c.Slack, "`team=URL` to which the processor slack of a job with that team sends; may be repeated")
	fs.StringVar(&c.Heartbeat.URL, "heartbeat-url", "", "`URL` that the leader calls each minute while it schedules")
	m := &c.Mail
	fs.StringVar(&m.Host, "mail-host", "", "`host` of the mail server; the owner_email of a job that failed, recovered, missed "+
		"ticks or is overdue gets mail")
	fs.UintVar(&m.Port, "mail-port", 25, "`port` of --mail-host; 465 has TLS from the start, on others it begins with STARTTLS if offered")
	fs.StringVar(&m.Username, "mail-username", "", "`name` at the mail server; none: without a login")
	fs.StringVar(&m.Password, "mail-password", "", "`password` of --mail-username; prefer BELFRY_MAIL_PASSWORD")
	fs.StringVar(&m.From, "mail-from", "", "`address` of the sender")
	fs.Func("mail-domains", "comma-separated `domains` to which mail goes; by default that of --mail-from", list(&m.Domains))
	fs.StringVar(&m.Prefix, "mail-subject-prefix", "[belfry]", "`text` before each subject")
	fs.StringVar(&m.Payload, "mail-payload", "", "`template` of the text, with the values of --webhook-payload")
}

// likeDkron reads what Dkron leaves out: the port of the cluster plane, and a factor 0 for the usual one.
func (c *config) likeDkron() {
	withPort := func(addr string) string {
		if _, _, err := net.SplitHostPort(addr); err == nil || addr == "" || strings.ContainsAny(addr, "={ ") {
			return addr
		}
		return net.JoinHostPort(strings.Trim(addr, "[]"), "8946")
	}
	for _, list := range [][]string{c.Join, c.RetryJoin} {
		for i := range list {
			list[i] = withPort(list[i])
		}
	}
	c.BindAddr, c.AdvertiseAddr = withPort(c.BindAddr), withPort(c.AdvertiseAddr)
	c.RaftMultiplier = cmp.Or(c.RaftMultiplier, 1)
}

// readConfig sets the flags of a file that are not set yet.
func readConfig(fs *flag.FlagSet, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	settings, err := parseSettings(string(text))
	given := map[string]bool{"config": true}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, set := range settings {
		name := strings.ToLower(set.name)
		if name == "tags" {
			name = "tag"
		}
		switch {
		case err != nil:
		case fs.Lookup(name) == nil:
			near, least := "", math.MaxInt
			fs.VisitAll(func(f *flag.Flag) {
				if d := editDistance(f.Name, name); d < least {
					near, least = f.Name, d
				}
			})
			err = fmt.Errorf("line %d: there is no setting %q; the nearest is %q", set.line, set.name, near)
		case !given[name]:
			if e := fs.Set(name, set.value); e != nil {
				err = fmt.Errorf("line %d: %s: invalid value %q: %w", set.line, set.name, set.value, e)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("--config %s: %w", file, err)
	}
	return nil
}

// A setting is a value in a file. A list has several, and so have tags, each as key=value.
type setting struct {
	line        int
	name, value string
}

// pairPattern is a line "name: value", of which the value may be missing.
var pairPattern = regexp.MustCompile(`^["']?([^\s:"']+)["']?:(?:\s+([^#].*))?(?:\s+#.*)?$`)

// parseSettings reads the part of YAML that Dkron's file needs: lines "name: value", lists, and the map tags.
func parseSettings(text string) (list []setting, err error) {
	name, n, seen := "", 0, map[string]bool{} // name: to which items may belong, or ""
	add := func(name, prefix, text string) {
		value, e := scalar(text)
		list, err = append(list, setting{n, name, prefix + value}), cmp.Or(err, e)
	}
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		body := strings.TrimLeft(line, " ")
		item, isItem := strings.CutPrefix(body, "- ")
		pair := pairPattern.FindStringSubmatch(body)
		switch indented := len(body) < len(line); {
		case body == "" || body[0] == '#' || body == "---" && n == 1:
		case isItem && name != "":
			add(name, "", item)
		case pair != nil && indented && name == "tags":
			add(name, pair[1]+"=", pair[2])
		case pair == nil || indented:
			err = errors.New(`is neither "name: value", nor an item of a list or of tags`)
		case seen[pair[1]]:
			err = fmt.Errorf("%s stands there twice", pair[1])
		case pair[2] == "":
			name, seen[pair[1]] = pair[1], true
		case pair[2][0] == '[' && strings.HasSuffix(pair[2], "]"):
			for item := range strings.SplitSeq(strings.Trim(pair[2], "[] "), ",") {
				if item != "" {
					add(pair[1], "", strings.TrimSpace(item))
				}
			}
			name, seen[pair[1]] = "", true
		default:
			add(pair[1], "", pair[2])
			name, seen[pair[1]] = "", true
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return list, nil
}

// scalar reads a value, in quotes or not, and drops a comment after it.
func scalar(text string) (value string, err error) {
	rest := ""
	switch first, _ := utf8.DecodeRuneInString(text); {
	case first == '"':
		quoted, _ := strconv.QuotedPrefix(text)
		value, err = strconv.Unquote(quoted)
		rest = text[len(quoted):]
	case first == '\'':
		end := strings.IndexByte(strings.ReplaceAll(text[1:], "''", "  "), '\'') + 1
		value, rest = strings.ReplaceAll(text[min(1, end):end], "''", "'"), text[min(end+1, len(text)):]
		if end == 0 {
			err = strconv.ErrSyntax
		}
	default:
		value, _, _ = strings.Cut(text, " #")
		if value = strings.TrimSpace(value); value == "" || strings.ContainsRune("[]{}&*!|>%@`,?~", first) || strings.Contains(value+" ", ": ") {
			err = strconv.ErrSyntax
		}
	}
	if rest = strings.TrimSpace(rest); err != nil || rest != "" && rest[0] != '#' {
		return "", fmt.Errorf("%q is no single value; write it in quotes", text)
	}
	return value, nil
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
		if !ok || given[f.Name] || err != nil || f.Name == "job" { // a job's command finds its own name in BELFRY_JOB
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
	if c.MetricsJobs < 0 || c.MetricsJobs > metricsJobsMax {
		return fmt.Errorf("--metrics-jobs: must be between 0 and %d", metricsJobsMax)
	}
	for flag, addr := range map[string]string{"statsd-addr": c.Statsd.Addr, "dog-statsd-addr": c.Statsd.Dog} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			return fmt.Errorf("--%s: %q must be a host and a port, such as 127.0.0.1:8125", flag, addr)
		}
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("--log-format: %q must be text or json", c.LogFormat)
	}
	if c.BootstrapExpect < 0 || c.BootstrapExpect > 0 && !c.Server {
		return errors.New("--bootstrap-expect: is the number of servers that bootstrap a cluster, and needs --server")
	}
	if !c.Server && len(c.Join)+len(c.RetryJoin) == 0 {
		return errors.New("--retry-join: a node without --server must know a server; name the address of its cluster plane")
	}
	if c.Adopt && c.Server {
		return errors.New("--adopt: is for agents; a server belongs to one cluster for as long as it has its --data-dir")
	}
	if c.MaxConcurrent < 0 {
		return errors.New("--max-concurrent: must be a number of executions, or 0 for any number")
	}
	if v, ok := c.Tags[tagMaxConcurrent]; ok {
		return fmt.Errorf("--tag %s=%s: this tag is reserved for --max-concurrent; use that, or another name", tagMaxConcurrent, v)
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
	for _, name := range c.Limits.JobEnv {
		switch {
		case (name == jobEnvInherit || name == jobEnvClean) && len(c.Limits.JobEnv) > 1:
			return fmt.Errorf("--job-env: %s stands for all names; give it alone", name)
		case name == "" || strings.Contains(name, "=") || strings.HasPrefix(name, "BELFRY_") || strings.HasPrefix(name, "DKRON_"):
			return fmt.Errorf("--job-env: %q is no name of a variable that jobs may get; those of the node's own settings are kept from them", name)
		}
	}
	if _, err := loadZone(c.Timezone); err != nil {
		return fmt.Errorf("--timezone: %w", err)
	}
	if c.CatchupWindow < catchupMin || c.CatchupWindow > catchupWindowMax {
		return fmt.Errorf("--catchup-window: must be at least %s and at most %s", catchupMin, catchupWindowMax)
	}
	if c.ExecutionsKept < 1 || c.FailuresKept < 0 {
		return errors.New("--executions-keep, --failures-keep: the first must be at least 1, the second at least 0")
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
	c.Notify.Page = c.page()
	return c.Notify.validate()
}

// page returns the URL of the page as others reach it, as far as this node knows.
func (c *config) page() string {
	u := url.URL{Scheme: "http", Host: c.HTTPAddr, Path: c.HTTPPrefix + "/"}
	if c.TLS.Cert != "" {
		u.Scheme = "https"
	}
	if addr, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "" || err == nil && addr.IsUnspecified() {
		u.Host = net.JoinHostPort(c.NodeName, u.Port())
	}
	return u.String()
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
			if strings.HasPrefix(addr, "provider=") || strings.Contains(addr, "{{") {
				return fmt.Errorf("%s: %q is not looked up here; write an address, such as 10.0.0.1:8946", flag, addr)
			}
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

// newKey returns a random cluster key, as decodeKey reads it.
func newKey() string {
	key := make([]byte, 32)
	crand.Read(key) // never fails
	return base64.StdEncoding.EncodeToString(key) + "\n"
}

// decodeKey reads a cluster key as --encrypt and keygen write it.
func decodeKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) < keyBytesMin {
		return nil, errShortKey
	}
	return key, nil
}

// ownKey returns the key of a node that was given none: the one in its data directory, which the first start makes. So
// there is no plane without a key, and who cannot read the file is a stranger to it. The caller has locked the directory.
func ownKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(newKey())
		err = replaceFile(path, text)
	}
	if err != nil {
		return nil, fmt.Errorf("--data-dir: cannot read or make the cluster key: %w", err)
	}
	key, err := decodeKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %s is damaged: %w", path, err)
	}
	return key, nil
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

// logger returns the log of the node.
func (c *config) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
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
	if c.MaxConcurrent > 0 {
		tags[tagMaxConcurrent] = strconv.Itoa(c.MaxConcurrent)
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
		BeatTime: time.Second, network: c.host.network, Adopt: c.Adopt,
	}
	if len(c.RetryJoin) == 0 {
		p.JoinTries = 1
	}
	return p
}

// serve runs a node until ctx is done. The writers must not block.
func serve(ctx context.Context, cfg config, stdout, stderr io.Writer) (err error) {
	log := cfg.logger(stderr)
	if err := guardProcess(); err != nil {
		log.Warn("the jobs of this node can read its memory and environment, and so its secrets", "err", err)
	}
	if cfg.Ignored != nil {
		log.Warn("these flags of Dkron have no effect here", "flags", strings.Join(cfg.Ignored, " "))
	}
	for _, file := range []string{"dkron.yml", "config/dkron.yml", "/etc/dkron/dkron.yml"} {
		if _, err := os.Stat(file); err == nil && cfg.ConfigFile == "" {
			log.Warn("this file has no effect unless --config names it", "file", file)
		}
	}
	for _, name := range cfg.Unused {
		log.Warn("this environment variable matches no flag and has no effect", "variable", name)
	}
	if info, err := os.Stat(cfg.keyFile); err == nil && info.Mode().IsRegular() && info.Mode()&0o004 != 0 {
		log.Warn("other users can read the cluster key, which allows to run commands on every node; chmod 600 the file",
			"file", cfg.keyFile)
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
	announce := func() {
		if os.Geteuid() == 0 {
			log.Warn("this node runs as root, and so do the commands of its jobs; run it as a dedicated user")
		}
		fmt.Fprintf(stdout, "belfry %s: API and page at %s://%s%s, data in %s\n",
			version, scheme, cfg.HTTPAddr, cfg.HTTPPrefix, cfg.DataDir)
	}
	if cfg.Server {
		return runServer(ctx, cfg, listener, announce, log)
	}
	return runWorker(ctx, cfg, listener, announce, log)
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
	sched *scheduler   // nil on an agent
	clu   *cluster     // nil on an agent
	api   *api         // nil on an agent
	front http.Handler // API and page
}

// newParts creates the parts that every node has, and listens on the cluster plane. agent is nil on a server.
func newParts(cfg config, id string, agent *agentDir, log *slog.Logger) (*parts, error) {
	n := &parts{}
	ec := executorConfig{Node: cfg.NodeName, NodeID: id, DataDir: cfg.DataDir, Log: log, Limits: cfg.Limits,
		Shell: cfg.host.shell, Chance: cfg.host.chance}
	if agent != nil { // a server hears of all nodes' failures
		ec.Failures = &failureLog{log: log}
	}
	var err error
	if n.exec, err = newExecutor(ec); err != nil {
		return nil, err
	}
	pc := cfg.plane(id, n.exec.incarnation())
	if agent != nil {
		pc.Agent, pc.Cluster = agent, agent.Cluster
	}
	if pc.Key == nil {
		if pc.Key, err = ownKey(cfg.DataDir); err != nil {
			return nil, err
		}
	}
	if n.plane, err = newPlane(pc, n.exec, log); err != nil {
		return nil, err
	}
	n.plane.listener = newBoundedListener(n.plane.listener, connsMax())
	return n, nil
}

// run starts the parts from the bottom up. When ctx is done or a part fails, it stops them from the top down, so no
// part loses one that it depends on.
func (n *parts) run(ctx context.Context, cfg config, listener net.Listener, announce func(), log *slog.Logger) error {
	if cfg.host.made != nil {
		cfg.host.made(n)
	}
	if err := n.exec.endLeftovers(); err != nil { // not earlier: a node that cannot start must not kill anything
		return err
	}
	var g errgroup.Group
	failed, fail := context.WithCancel(context.Background())
	defer fail()
	stopPlane, stopDriver, stopSecret := spawn(&g, fail, n.plane.run), func() {}, func() {}
	if n.clu != nil {
		stopDriver = spawn(&g, fail, n.clu.run)
		stopSecret = spawn(&g, fail, func(ctx context.Context) error {
			var g errgroup.Group
			g.Go(func() error { return dropBootstrap(ctx, cfg.DataDir, n.clu.store, log) })
			g.Go(func() error {
				for cfg.Statsd.Addr+cfg.Statsd.Dog != "" && pause(ctx, statsdPause) == nil {
					if text, err := n.api.metricsText(nil); err == nil {
						cfg.Statsd.report(text)
					}
				}
				return nil
			})
			return g.Wait()
		})
	}
	stopReports := spawn(&g, fail, func(ctx context.Context) error { return n.exec.run(ctx, n.plane.reportToLeader) })
	stopWeb := spawn(&g, fail, webServer(listener, withPrefix(cfg.HTTPPrefix, n.front), log))
	announce()
	select {
	case <-ctx.Done():
		log.Info("stopping", "grace", cfg.ShutdownGrace)
	case <-failed.Done():
	}

	// 1. Accept no more requests, and finish the present ones.
	stopSecret()
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

func runServer(ctx context.Context, cfg config, listener net.Listener, announce func(), log *slog.Logger) (err error) {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	st, err := openStore(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	failures := &failureLog{log: log}
	st.disk, st.failed = cfg.host.disk, func(e executionRow) {
		failures.add(e.JobName, executionName(e.ID, e.Node), e.Outcome, e.Reason, e.Attempt)
	}
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
		Catchup: cfg.CatchupWindow, ExecutionsKept: cfg.ExecutionsKept, FailuresKept: cfg.FailuresKept,
		Timezone: cfg.Timezone, LostAfter: cfg.LostAfter, AuditKept: cfg.AuditKept, AuditKeptBytes: cfg.AuditKeptBytes,
		Listeners: cfg.Notify.listeners(),
	}, st, log)
	if sched.courier, err = newCourier(cfg.Notify, cfg.NodeName, cfg.Limits, cfg.host.dial); err != nil {
		return err
	}
	st.docs.courier = sched.courier
	n, err := newParts(cfg, own.ID, nil, log)
	if err != nil {
		return err
	}
	defer n.plane.listener.Close()
	clu, err := newCluster(n.plane, st, time.Duration(cfg.RaftMultiplier)*tickTime, sched)
	if err != nil {
		return err
	}
	sched.cluster = clu
	if cfg.host.chance != nil {
		sched.chance = cfg.host.chance
	}
	n.sched, n.clu = sched, clu
	n.api = &api{
		node: cfg.NodeName, hosts: append(cfg.AllowedHosts, cfg.NodeName), origins: cfg.CORSOrigins,
		store: st, scheduler: sched, log: log, stopping: ctx.Done(),
		plane: n.plane, quit: quit, acl: cfg.ACL, dir: cfg.DataDir, metricsJobs: cfg.MetricsJobs,
	}
	n.front = n.api.handler()
	n.plane.api = n.front
	return n.run(ctx, cfg, listener, announce, log)
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
func runWorker(ctx context.Context, cfg config, listener net.Listener, announce func(), log *slog.Logger) (err error) {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	dir, err := openAgentDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	n, err := newParts(cfg, dir.ID, dir, log)
	if err != nil {
		return err
	}
	defer n.plane.listener.Close()
	n.front = (&api{
		node: cfg.NodeName, hosts: append(cfg.AllowedHosts, cfg.NodeName), origins: cfg.CORSOrigins,
		log: log, stopping: ctx.Done(),
		plane: n.plane, quit: quit, acl: cfg.ACL,
	}).relayHandler()
	return n.run(ctx, cfg, listener, announce, log)
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

const remoteTimeout = 30 * time.Second // for a node to respond to a command

// A subcommand is a command of the command line.
type subcommand struct {
	name    string // its words
	args    string // in capitals, in brackets if they may be missing
	help    string // what it does
	example string // what to type after "belfry"
	kind    int
	// setup adds the command's own flags and returns what executes it once the flags are parsed.
	setup func(*flag.FlagSet, *invocation) func() error
}

// Kinds of subcommands.
const (
	standalone = iota // parses its own flags
	local             // needs no node
	remote            // acts on a node
	shows             // acts on a node, and prints a table, or JSON with --json
)

// subcommands are all commands, in the order of the help.
func subcommands() []subcommand {
	const agentExample = "agent --server --bootstrap-expect=1"
	return []subcommand{
		{"agent", "", "run a node", agentExample, standalone, nil},
		{"keygen", "", "print a random cluster key for --encrypt-file", "keygen > cluster.key", local, printing(newKey)},
		{"recover", "", "make a new cluster of one server, if the majority of the old one is lost for good",
			"recover --yes-i-lost-a-majority --data-dir=belfry.data", local, setupRecover},
		{"version", "", "print the version", "version", local, printing(versionLine)},
		{"help", "", "print this text, or with words of a command what it does", "help run", local, printing(helpText)},

		{"jobs", "", "list jobs", "jobs --status=failed --metadata=team=web", shows, setupJobs},
		{"job", "NAME", "show a job", "job backup", shows, plain(showJob)},
		{"run", "NAME", "run a job now", "run backup -f", remote, setupRun},
		{"logs", "NAME|EXECUTION", "print an output, of a job that of its newest execution", "logs backup -f", remote, setupLogs},
		{"why", "NAME", "say what became of the ticks of a job", "why backup --at=2026-11-24T03:00:00Z", shows, setupWhy},
		{"kill", "NAME|EXECUTION", "end an execution, or all of a job", "kill backup", remote, plain(killRuns)},
		{"enable", "NAME", "let the schedule of a job fire", "enable backup", remote, setDisabled("false")},
		{"disable", "NAME", "keep the schedule of a job from firing", "disable backup", remote, setDisabled("true")},
		{"delete", "NAME", "delete a job", "delete backup", remote, plain(deleteJob)},
		{"executions", "", "list what ran", "executions --failed --since=12h", shows, setupExecutions},
		{"rerun", "", "run the jobs again whose last run failed, or whose last tick was missed",
			"rerun --failed --since=12h --dry-run", remote, setupRerun},
		{"preview", "", "list what will run", "preview --from=2027-03-28T00:00:00Z --to=2027-03-29T00:00:00Z", shows, setupPreview},

		{"apply", "", "make the jobs what a file says, all or none, after showing what that changes",
			"apply -f jobs/ --prune --metadata=team=web --dry-run", remote, setupApply},
		{"export", "", "print the jobs as apply takes them", "export --metadata=team=web > jobs.json", remote, setupExport},
		{"import crontab", "FILE|-", "print the lines of a crontab as jobs for apply, and report what cannot be as it was",
			"import crontab /etc/crontab --system --tag=role=cron > jobs.json", local, setupImportCrontab},
		{"import dkron", "URL|FILE|-", "print the jobs of a Dkron, or of a file from its API, for apply, and report what cannot run here",
			"import dkron http://10.0.0.1:8080 --disabled > jobs.json", local, setupImportDkron},

		{"hold", "WHY", "keep jobs from starting until they are released", "hold 'a new switch' --metadata=team=web", remote, setHold("hold")},
		{"release", "", "end the hold of the same metadata", "release --metadata=team=web", remote, setHold("release")},
		{"drain", "NODE", "let nothing start on a node, and wait until nothing runs there", "drain web1", remote, setupDrain},

		{"members", "", "list the nodes", "members", shows, plain(showMembers)},
		{"health", "", "say whether reads and writes work through the node; exit status 1 if not", "health", remote, call(http.MethodGet, "/health", "")},
		{"leave", "", "take the node out of its cluster and stop it", "leave", remote, plain(leave)},
		{"raft list-peers", "", "list the servers: leader, voters, status", "raft list-peers", shows, plain(listPeers)},
		{"raft remove-peer", "", "remove a server that is lost for good from the voters",
			"raft remove-peer --peer-id=b", remote, setupRemovePeer},
		{"acl bootstrap", "", "create the first management token, on the server's machine", "acl bootstrap", remote, setupBootstrap},
		{"acl policy apply", "", "create or replace a policy", "acl policy apply --name=a --rules-file=a.json", remote, setupApplyPolicy},
		{"acl policy list", "", "list the policies", "acl policy list", remote, call(http.MethodGet, "/v1/acl/policies", "")},
		{"acl policy info", "[NAME]", "show a policy", "acl policy info a", remote, call(http.MethodGet, "/v1/acl/policies/", "name")},
		{"acl policy delete", "[NAME]", "delete a policy", "acl policy delete a", remote,
			call(http.MethodDelete, "/v1/acl/policies/", "name")},
		{"acl token create", "", "create a token", "acl token create --name=wall --policy=viewer", remote, setupCreateToken},
		{"acl token list", "", "list the tokens", "acl token list", remote, call(http.MethodGet, "/v1/acl/tokens", "")},
		{"acl token info", "[ACCESSOR]", "show a token", "acl token info 3f", remote, call(http.MethodGet, "/v1/acl/tokens/", "accessor-id")},
		{"acl token delete", "[ACCESSOR]", "delete a token", "acl token delete 3f", remote,
			call(http.MethodDelete, "/v1/acl/tokens/", "accessor-id")},
	}
}

// An invocation is a command that is being executed.
type invocation struct {
	remoteNode
	ctx            context.Context
	environ        []string
	args           []string // besides flags
	json           bool     // print what the API responds
	stdout, stderr io.Writer
}

// run parses the arguments of a command and executes it.
func (c subcommand) run(s *invocation, args []string) (err error) {
	if c.kind == standalone {
		return runAgent(s, args)
	}
	fs := newFlagSet(c.name)
	execute := c.setup(fs, s)
	if c.kind != local {
		s.flags(fs)
	}
	if c.kind == shows {
		fs.BoolVar(&s.json, "json", false, "print what the API responds, for programs")
	}
	n := len(strings.Fields(c.args))
	if s.args, err = parseFlags(fs, args, s.environ, s.stdout, n-strings.Count(c.args, "["), n); err == nil {
		err = s.readToken()
	}
	if err != nil {
		return usageError{err}
	}
	return execute()
}

// need returns a usageError unless the flag was given.
func need(flag, value, hint string) error {
	if value == "" {
		return usageError{fmt.Errorf("--%s: is required%s", flag, hint)}
	}
	return nil
}

// plain returns the setup of a command without flags of its own.
func plain(execute func(*invocation) error) func(*flag.FlagSet, *invocation) func() error {
	return func(_ *flag.FlagSet, s *invocation) func() error { return func() error { return execute(s) } }
}

// printing returns the setup of a command that prints text.
func printing(text func() string) func(*flag.FlagSet, *invocation) func() error {
	return plain(func(s *invocation) error {
		_, err := io.WriteString(s.stdout, text())
		return err
	})
}

// versionLine returns the version, and the commit that it was built from if that is known.
func versionLine() string {
	line := "belfry " + version
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, set := range info.Settings {
			if set.Key == "vcs.revision" {
				line += ", commit " + set.Value
			}
		}
	}
	return line + "\n"
}

func helpText() string {
	var b strings.Builder
	b.WriteString("belfry: a job scheduler, cron for a cluster. Without arguments it runs one server: API and page\n" +
		"on 127.0.0.1:8080, data in ./belfry.data. \"belfry COMMAND -h\" tells more.\n" +
		"\"belfry help runs\", \"help operations\" and \"help differences\" (from Dkron) say how things work.\n\n")
	printUsage(&b, slices.DeleteFunc(subcommands(), func(c subcommand) bool { return c.kind > local }))
	b.WriteString("\nThese act on the node at --http-addr or BELFRY_HTTP_ADDR, by default 127.0.0.1:8080. With access\n" +
		"control they need a token: BELFRY_TOKEN, --token-file or --token.\n\n")
	printUsage(&b, slices.DeleteFunc(subcommands(), func(c subcommand) bool { return c.kind <= local }))
	return b.String()
}

// remoteNode is a running node that a command acts on.
type remoteNode struct {
	addr      string // host:port of its API, or its URL
	host      string // in place of that in addr; "": none
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
	fs.Func("rpc-addr", "", func(text string) (err error) { // Dkron's, where the API is at another port of that host
		n.host, _, err = net.SplitHostPort(text)
		return err
	})
	n.tlsFlags(fs)
}

func (n *remoteNode) tlsFlags(fs *flag.FlagSet) {
	n.tls.flags(fs, "`file` with a client certificate, if the node requires one",
		"`file` with the certificates that sign the node's; implies https, as does https:// before its address")
}

// client returns an HTTP client for the node, and the URL of its API.
func (n *remoteNode) client() (*http.Client, string, error) {
	addr, secure := strings.CutPrefix(n.addr, "https://")
	addr = strings.TrimRight(strings.TrimPrefix(addr, "http://"), "/")
	if strings.HasPrefix(addr, ":") { // as in the node's own --http-addr, where it means all addresses
		addr = "127.0.0.1" + addr
	}
	if n.host != "" {
		_, port, _ := net.SplitHostPort(addr)
		addr = net.JoinHostPort(n.host, cmp.Or(port, "8080"))
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

// What a 404 and a 409 mean.
var (
	errNodeRefused = errors.New("the node responded with 409 Conflict")
	errNotThere    = errors.New("there is none of that name")
	errNoAPI       = errors.New("there is no belfry API below that address; see --http-prefix")
)

// ask sends a request and returns the body of the response. It sends doc as JSON; nil is no body.
func (n *remoteNode) ask(ctx context.Context, method, path string, doc any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	var sent io.Reader
	if doc != nil {
		text, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(text)
	}
	resp, err := n.send(ctx, method, path, "application/json", sent)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, restoreBytesMax))
	if err == nil && len(body) == restoreBytesMax {
		err = fmt.Errorf("the response is longer than %d bytes", restoreBytesMax)
	}
	return body, err
}

// send sends a request and returns the response, whose body the caller closes. Any status other than 2xx is an error.
func (n *remoteNode) send(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	client, base, err := n.client()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, fmt.Errorf("--http-addr %s: %w", n.addr, err)
	}
	r.Header.Set("Content-Type", contentType)
	if n.token != "" {
		r.Header.Set("X-Dkron-Token", n.token)
	}
	resp, err := client.Do(r)
	var untrusted *tls.CertificateVerificationError
	var failed *url.Error
	switch {
	case errors.As(err, &untrusted):
		return nil, fmt.Errorf("--http-addr %s: the node's certificate is not trusted; name its CA with --tls-ca, "+
			"and use an address that is in the certificate: %w", n.addr, untrusted.Err)
	case errors.Is(err, errElsewhere):
		return nil, fmt.Errorf("--http-addr %s: %w", n.addr, err)
	case errors.As(err, &failed):
		return nil, fmt.Errorf("--http-addr %s: no node responds there: %w", n.addr, failed.Err)
	case err != nil:
		return nil, err
	case resp.StatusCode/100 == 2 && resp.Header.Get("X-Whom") != "":
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, jobBytesMax))
	switch {
	case err != nil:
		return nil, err
	case bytes.Contains(text, []byte("HTTP request to an HTTPS server")): // as net/http says it
		return nil, fmt.Errorf("--http-addr %s: the node speaks TLS; use https:// before the address, or --tls-ca", n.addr)
	case resp.StatusCode != http.StatusMisdirectedRequest && resp.Header.Get("X-Whom") == "":
		return nil, fmt.Errorf("--http-addr %s: %w", n.addr, errNoAPI)
	case resp.StatusCode == http.StatusNotFound:
		return nil, errNotThere
	case resp.StatusCode == http.StatusConflict:
		return nil, fmt.Errorf("%w: %s", errNodeRefused, bytes.TrimSpace(text))
	}
	return nil, fmt.Errorf("the node responded with %s: %s", resp.Status, bytes.TrimSpace(text))
}

// askAll is ask for a path that every node has.
func (n *remoteNode) askAll(ctx context.Context, method, path string) ([]byte, error) {
	body, err := n.ask(ctx, method, path, nil)
	if errors.Is(err, errNotThere) {
		err = fmt.Errorf("--http-addr %s: %w", n.addr, errNoAPI)
	}
	return body, err
}

// fetch gets a document from the API.
func fetch[T any](s *invocation, path string) (doc T, err error) {
	body, err := s.ask(s.ctx, http.MethodGet, path, nil)
	if err == nil {
		err = decode(body, &doc)
	}
	return doc, err
}

// decode reads a document of the API.
func decode(body []byte, doc any) error {
	if err := json.Unmarshal(body, doc); err != nil {
		return fmt.Errorf("the response is not from a belfry node: %w", err)
	}
	return nil
}

// show prints a list of the API as a table, or as it is with --json. It returns the number of rows.
func show[T any](s *invocation, path, header string, row func(T) []string) (n int, err error) {
	var list []T
	body, err := s.askAll(s.ctx, http.MethodGet, path)
	if err == nil {
		err = decode(body, &list)
	}
	if err != nil || s.json {
		return len(list), s.printJSON(body, err)
	}
	return len(list), table(s, list, header, row)
}

// table prints rows below a header of words, or their JSON with --json.
func table[T any](s *invocation, list []T, header string, row func(T) []string) error {
	if s.json {
		return s.printJSON(json.Marshal(append([]T{}, list...)))
	}
	tw := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	for _, v := range list {
		cells := row(v)
		for i, cell := range cells {
			cells[i] = cmp.Or(printable(cell), "-")
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// printable replaces what a terminal would execute, or would break a table.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// printJSON prints a document of the API, indented.
func (s *invocation) printJSON(doc []byte, err error) error {
	if err != nil {
		return err
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, doc, "", "  ") != nil {
		pretty.Reset()
		pretty.Write(doc)
	}
	if _, err := fmt.Fprintln(s.stdout, pretty.String()); err != nil {
		return fmt.Errorf("it is done, but the response could not be printed: %w", err)
	}
	return nil
}

// localTime returns a time in this machine's zone, or "" for none.
func localTime(t time.Time) string {
	if t.Unix() <= 0 {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// timeFlag adds a flag for a time, in this machine's zone unless it names one.
func timeFlag(fs *flag.FlagSet, name string, t *time.Time, help string) {
	fs.Func(name, help, func(text string) (err error) {
		for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
			if *t, err = time.ParseInLocation(layout, text, time.Local); err == nil {
				return nil
			}
		}
		return errors.New("write it as 2030-01-31T12:00:00Z, or 2030-01-31T12:00 in this machine's zone")
	})
}

// mapFlag adds a repeatable flag whose values are key=value.
func mapFlag(fs *flag.FlagSet, name string, m *map[string]string, help string) {
	fs.Func(name, help, func(text string) error {
		var pairs []string
		if err := list(&pairs)(text); err != nil {
			return err
		}
		for _, pair := range pairs {
			k, v, ok := strings.Cut(pair, "=")
			if !ok || k == "" {
				return errors.New("write it as key=value")
			}
			if *m == nil {
				*m = map[string]string{}
			}
			(*m)[k] = v
		}
		return nil
	})
}

// listedJob is a job as the API shows it.
type listedJob struct {
	job
	Status string    `json:"status"`
	Next   time.Time `json:"next"`
}

// fires says when a job falls due.
func (j listedJob) fires() string {
	switch {
	case j.ParentJob != "":
		return "after " + j.ParentJob
	case j.Disabled:
		return "disabled"
	}
	return localTime(j.Next)
}

func setupJobs(fs *flag.FlagSet, s *invocation) func() error {
	const statuses = "success, failed, partially_failed, untriggered"
	q := url.Values{}
	for name, help := range map[string]string{"q": "part of a `name`", "status": "only this `status`: " + statuses, "executor": "only of this `executor`"} {
		fs.Func(name, help, func(text string) error {
			if name == "status" && !slices.Contains(strings.Split(statuses, ", "), text) {
				return errors.New("write one of " + statuses)
			}
			q.Set(name, text)
			return nil
		})
	}
	fs.BoolFunc("disabled", "only jobs that are disabled; false: only those that are not", func(text string) error {
		_, err := strconv.ParseBool(text)
		q.Set("disabled", text)
		return err
	})
	metadata := metadataFlag(fs)
	return func() error {
		maps.Copy(q, metadataQuery(*metadata))
		const header = "NAME SCHEDULE STATUS LAST-SUCCESS LAST-ERROR NEXT"
		_, err := show(s, "/v1/jobs?"+q.Encode(), header, func(j listedJob) []string {
			last := []string{localTime(timeOf(int64(j.LastSuccess))), localTime(timeOf(int64(j.LastError)))}
			return []string{j.Name, j.Schedule, j.Status, last[0], last[1], j.fires()}
		})
		return err
	}
}

// jobPathOf returns the path of the job that the command names.
func (s *invocation) jobPathOf() string { return jobPath(s.args[0]) }

// noJob says which job is not there.
func (s *invocation) noJob(err error) error {
	if errors.Is(err, errNotThere) {
		return fmt.Errorf("there is no %q; \"belfry jobs\" lists the jobs, \"belfry executions\" the executions", s.args[0])
	}
	return err
}

func showJob(s *invocation) error {
	body, err := s.ask(s.ctx, http.MethodGet, s.jobPathOf(), nil)
	if err != nil || s.json {
		return s.printJSON(body, s.noJob(err))
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.Token() // the object's begin
	tw := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	for d.More() {
		field, _ := d.Token()
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("the response is not from a belfry node: %w", err)
		}
		if !slices.Contains([]string{`""`, "null", "{}", "[]", "0", "false"}, string(value)) {
			var text string
			if json.Unmarshal(value, &text) != nil {
				text = string(value)
			}
			fmt.Fprintf(tw, "%s\t%s\n", field, printable(text))
		}
	}
	return tw.Flush()
}

func setupRun(fs *flag.FlagSet, s *invocation) func() error {
	follow := fs.Bool("f", false, "print the output until the run ends, and end with the exit status of its command")
	force := fs.Bool("force", false, "also if the job is disabled or held")
	return func() error {
		path := s.jobPathOf() + "/run"
		if *force {
			path += "?force"
		}
		resp, err := s.send(s.ctx, http.MethodPost, path, "", nil)
		if err != nil {
			return s.noJob(err)
		}
		resp.Body.Close()
		group, err := strconv.ParseInt(resp.Header.Get("Belfry-Group"), 10, 64)
		text := fmt.Sprintf("%s runs as group %d", s.args[0], group)
		if err != nil { // its group is not known yet
			text = fmt.Sprintf("%[1]s waits until it may start; \"belfry logs %[1]s -f\" follows it then", s.args[0])
		}
		switch {
		case *follow && err == nil:
			return s.follow(group)
		case *follow:
			return errors.New(text)
		}
		_, err = fmt.Fprintln(s.stdout, text)
		return err
	}
}

const followPause = 200 * time.Millisecond // between looks at a run that is followed

// follow prints the outputs of a run until it has ended, retries too. The error says how, unless it has succeeded.
func (s *invocation) follow(group int64) error {
	j, err := fetch[listedJob](s, s.jobPathOf())
	if err != nil {
		return s.noJob(err)
	}
	shown := map[string]bool{}
	for {
		list, err := fetch[[]executionView](s, s.jobPathOf()+"/executions?output_size_limit=0&_sort=id&_order=ASC")
		if err != nil {
			return err
		}
		over, last := true, map[string]executionView{} // by node
		for _, e := range list {
			if e.Group != group {
				continue
			}
			if last[e.NodeName] = e; shown[e.ID] {
				continue
			}
			shown[e.ID], over = true, false
			fmt.Fprintf(s.stderr, "%s, attempt %d on %s\n", e.ID, e.Attempt, e.NodeName)
			if err := s.output(e, true); err != nil {
				return err
			}
		}
		var failed *executionView
		for _, e := range last {
			if e.FinishedAt.Year() <= 1 || retried(e.Outcome) && e.Attempt <= int(j.Retries) {
				over = false
			}
			if !e.Success {
				failed = &e
			}
		}
		switch {
		case over && len(last) > 0 && failed == nil:
			return nil
		case over && len(last) > 0:
			f := runFailed{fmt.Sprintf("%s %s on %s: %s", s.args[0], failed.Outcome, failed.NodeName, failed.Reason), exitError}
			if c := failed.ExitCode; c != nil && *c > 0 {
				f.status = *c
			}
			return f
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(followPause):
		}
	}
}

// output copies the output of an execution.
func (s *invocation) output(e executionView, follow bool) error {
	path := jobPath(e.JobName) + "/executions/" + url.PathEscape(e.ID) + "/output"
	if follow {
		path += "?follow"
	}
	resp, err := s.send(s.ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return s.noJob(err)
	}
	defer resp.Body.Close()
	if _, err = io.Copy(s.stdout, resp.Body); err != nil {
		return fmt.Errorf("the output of %s broke off: %w", e.ID, err)
	}
	return nil
}

// named returns the executions that NAME|EXECUTION means: those of the job, newest first, or the one.
func (s *invocation) named() ([]executionView, error) {
	list, err := fetch[[]executionView](s, s.jobPathOf()+"/executions?output_size_limit=0")
	if !errors.Is(err, errNotThere) {
		return list, err
	}
	e, err := fetch[executionView](s, "/v1/executions/"+url.PathEscape(s.args[0]))
	return []executionView{e}, s.noJob(err)
}

func setupLogs(fs *flag.FlagSet, s *invocation) func() error {
	follow := fs.Bool("f", false, "go on until the execution ends")
	return func() error {
		list, err := s.named()
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("%s has no execution; \"belfry why %s\" says more", s.args[0], s.args[0])
		}
		if err != nil {
			return err
		}
		return s.output(list[0], *follow)
	}
}

func killRuns(s *invocation) error {
	list, err := s.named()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(e executionView) bool { return e.FinishedAt.Year() > 1 })
	if len(list) == 0 {
		return fmt.Errorf("%s does not run", s.args[0])
	}
	for _, e := range list {
		path := jobPath(e.JobName) + "/executions/" + url.PathEscape(e.ID) + "/kill"
		if _, err := s.ask(s.ctx, http.MethodPost, path, nil); err != nil {
			return fmt.Errorf("%s: %w", e.ID, err)
		}
		fmt.Fprintf(s.stdout, "%s of %s is being ended\n", e.ID, e.JobName)
	}
	return nil
}

// setHold returns the setup of hold and release.
func setHold(path string) func(*flag.FlagSet, *invocation) func() error {
	return func(fs *flag.FlagSet, s *invocation) func() error {
		var held rule
		mapFlag(fs, "metadata", &held.Metadata, "`key=value` that the jobs have; may be repeated. Without it all jobs are meant")
		return func() error {
			if len(s.args) > 0 {
				held.Why = s.args[0]
			}
			body, err := s.ask(s.ctx, http.MethodPost, "/v1/"+path, held)
			if errors.Is(err, errNotThere) {
				err = errors.New("there is no such hold; the page shows those that there are")
			}
			return s.printJSON(body, err)
		}
	}
}

func setupDrain(fs *flag.FlagSet, s *invocation) func() error {
	undo := fs.Bool("undo", false, "let runs start on it again")
	return func() error {
		path, done := "/drain?wait=30s", "nothing runs on %s, and nothing starts there\n"
		if *undo {
			path, done = "/undrain", "runs may start on %s\n"
		}
		for {
			resp, err := s.send(s.ctx, http.MethodPost, "/v1/members/"+url.PathEscape(s.args[0])+path, "", nil)
			if errors.Is(err, errNotThere) {
				err = fmt.Errorf("there is no such node, or it is not drained; \"belfry members\" lists the nodes")
			}
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				fmt.Fprintf(s.stdout, done, s.args[0])
				return nil
			}
		}
	}
}

// setDisabled returns the setup of enable and disable.
func setDisabled(to string) func(*flag.FlagSet, *invocation) func() error {
	return plain(func(s *invocation) error {
		var j listedJob
		body, err := s.ask(s.ctx, http.MethodPost, s.jobPathOf()+"/toggle?disabled="+to, nil)
		if err == nil {
			err = decode(body, &j)
		}
		if err != nil {
			return s.noJob(err)
		}
		state := "disabled"
		if !j.Disabled {
			state = "enabled, next run: " + cmp.Or(j.fires(), "none")
		}
		_, err = fmt.Fprintf(s.stdout, "%s is %s\n", j.Name, state)
		return err
	})
}

func deleteJob(s *invocation) error {
	if _, err := s.ask(s.ctx, http.MethodDelete, s.jobPathOf(), nil); err != nil {
		return s.noJob(err)
	}
	fmt.Fprintf(s.stdout, "%s is deleted\n", s.args[0])
	return nil
}

const whyTicksMax = 20 // that why tells of

func setupWhy(fs *flag.FlagSet, s *invocation) func() error {
	var at time.Time
	timeFlag(fs, "at", &at, "only the ticks of the minute from this `time` on; otherwise the newest of the last day")
	return func() error {
		from, to := at, at.Add(time.Minute-1)
		if at.IsZero() {
			to = time.Now()
			from = to.Add(-24 * time.Hour)
		}
		q := url.Values{"start": {from.Format(time.RFC3339Nano)}, "end": {to.Format(time.RFC3339Nano)}, "_end": {strconv.Itoa(whyTicksMax)}}
		path := s.jobPathOf() + "/ticks?" + q.Encode()
		body, err := s.ask(s.ctx, http.MethodGet, path, nil)
		if err != nil || s.json {
			return s.printJSON(body, s.noJob(err))
		}
		var ledger struct {
			Due   int64
			Ticks []tickView
			Days  []tickDayView
		}
		if err := decode(body, &ledger); err != nil {
			return err
		}
		j, err := fetch[listedJob](s, s.jobPathOf())
		if err != nil {
			return err
		}
		runs, err := fetch[[]executionView](s, s.jobPathOf()+"/executions?output_size_limit=0")
		if err != nil {
			return err
		}
		fmt.Fprintf(s.stdout, "%s: next run: %s.\n", j.Name, cmp.Or(j.fires(), "none"))
		for _, t := range ledger.Ticks {
			fmt.Fprintln(s.stdout, printable(t.sentence(runs)))
		}
		for _, d := range ledger.Days {
			fmt.Fprintf(s.stdout, "%s: of its ticks %d ran, %d ran late, %d were skipped, %d were missed.\n",
				d.Date.Format(time.DateOnly), d.Ran, d.Late, d.Skipped, d.Missed)
		}
		if ledger.Due == 0 {
			fmt.Fprintf(s.stdout, "It had no tick from %s to %s.\n", localTime(from), localTime(to))
		}
		return nil
	}
}

// sentence says what became of a tick. runs are executions of the job.
func (t tickView) sentence(runs []executionView) string {
	when := localTime(t.Due)
	if t.Until != nil {
		when = fmt.Sprintf("%s to %s, %d ticks", when, localTime(*t.Until), t.Count)
	}
	text := fmt.Sprintf("%s: %s", when, map[string]string{
		outcomeRan: "ran", outcomeLate: "ran late", outcomeSkipped: "did not run, skipped", outcomeMissed: "did not run, missed"}[t.Outcome])
	if t.Reason != "" {
		text += ": " + t.Reason
	}
	for _, id := range t.Executions {
		text += ", as " + id
		if i := slices.IndexFunc(runs, func(e executionView) bool { return e.ID == id }); i >= 0 {
			text += " (" + cmp.Or(runs[i].Outcome, "running") + ")"
		}
	}
	return text + "."
}

func setupExecutions(fs *flag.FlagSet, s *invocation) func() error {
	failed := fs.Bool("failed", false, "only those that did not succeed")
	since := fs.Duration("since", time.Hour, "only those of this `time` until now")
	return func() error {
		q := sinceQuery(*since)
		if *failed {
			q.Set("outcome", "bad")
		}
		const header = "JOB EXECUTION STARTED TOOK OUTCOME REASON"
		n, err := show(s, "/v1/executions?"+q.Encode(), header, func(e executionView) []string {
			took := ""
			if e.FinishedAt.Year() > 1 {
				took = e.FinishedAt.Sub(e.StartedAt).Round(time.Millisecond).String()
			}
			return []string{e.JobName, e.ID, localTime(e.StartedAt), took, cmp.Or(e.Outcome, "running"), e.Reason}
		})
		if n == recentMax {
			fmt.Fprintf(s.stderr, "belfry: only the newest %d are listed; make --since shorter\n", recentMax)
		}
		return err
	}
}

// sinceQuery selects what was in a time until now.
func sinceQuery(since time.Duration) url.Values {
	return url.Values{"start": {time.Now().Add(-since).Format(time.RFC3339Nano)}}
}

func setupRerun(fs *flag.FlagSet, s *invocation) func() error {
	failed := fs.Bool("failed", false, "the jobs whose last run failed")
	missed := fs.Bool("missed", false, "the jobs whose last tick did not run, and that have not run since")
	since := fs.Duration("since", 0, "failures and ticks of this `time` until now; required")
	dry := fs.Bool("dry-run", false, "only list the jobs")
	return func() error {
		if *failed == *missed || *since <= 0 {
			return usageError{errors.New("--failed, --missed: one of them is required, and --since")}
		}
		needed := s.lastTickMissed
		if *failed {
			needed = s.lastRunFailed
		}
		jobs, err := fetch[[]listedJob](s, "/v1/jobs")
		if err != nil {
			return err
		}
		var refused error
		for _, j := range jobs {
			wanted, err := needed(j, *since)
			if wanted && err == nil && !*dry {
				_, err = s.ask(s.ctx, http.MethodPost, jobPath(j.Name)+"/run", nil)
			}
			switch {
			case errors.Is(err, errNotThere): // deleted meanwhile
			case errors.Is(err, errNodeRefused):
				refused = errors.Join(refused, fmt.Errorf("%s: %w", j.Name, err))
			case err != nil:
				return fmt.Errorf("%s: %w; the jobs above run again", j.Name, err)
			case wanted:
				fmt.Fprintln(s.stdout, j.Name)
			}
		}
		return refused
	}
}

// lastRunFailed reports whether the last run of a job failed, within a time until now.
func (s *invocation) lastRunFailed(j listedJob, since time.Duration) (bool, error) {
	if j.Status != statusFailed && j.Status != statusPartial || time.Since(timeOf(int64(j.LastError))) > since {
		return false, nil
	}
	runs, err := fetch[[]executionView](s, jobPath(j.Name)+"/executions?output_size_limit=0")
	nodes := map[string]bool{}
	for _, e := range runs { // newest first: of each node of the last group, only the last attempt counts
		if e.Group == runs[0].Group && !nodes[e.NodeName] {
			if nodes[e.NodeName] = true; !e.Success && e.Outcome != "" {
				return true, nil
			}
		}
	}
	return false, err
}

// lastTickMissed reports whether the last tick of a job within a time until now did not run, and nothing has run since.
func (s *invocation) lastTickMissed(j listedJob, since time.Duration) (bool, error) {
	if j.Disabled || j.ParentJob != "" {
		return false, nil
	}
	ledger, err := fetch[struct{ Ticks []tickView }](s, jobPath(j.Name)+"/ticks?_end=1&"+sinceQuery(since).Encode())
	if err != nil || len(ledger.Ticks) == 0 || !slices.Contains([]string{outcomeMissed, outcomeSkipped}, ledger.Ticks[0].Outcome) {
		return false, err
	}
	runs, err := fetch[[]executionView](s, jobPath(j.Name)+"/executions?output_size_limit=0")
	return len(runs) == 0 || runs[0].ScheduledAt.Before(ledger.Ticks[0].Due), err
}

const previewMax = 1_000_000 // ticks

// A previewed is a tick to come.
type previewed struct {
	Job   string    `json:"job_name"`
	Due   time.Time `json:"due"`             // in the zone of the schedule
	Clock string    `json:"clock,omitempty"` // by how much the clock was changed since the tick before
}

func setupPreview(fs *flag.FlagSet, s *invocation) func() error {
	var from, to time.Time
	timeFlag(fs, "from", &from, "first `time`; by default now")
	timeFlag(fs, "to", &to, "last `time`, not included; by default a day after --from")
	only := fs.String("job", "", "only the job of this `name`")
	disabled := fs.Bool("disabled", false, "also disabled jobs, as if they were enabled now")
	return func() error {
		if from.IsZero() {
			from = time.Now()
		}
		if to.IsZero() {
			to = from.AddDate(0, 0, 1)
		}
		zone, err := fetch[struct{ Timezone string }](s, "/v1/schedule?schedule=@daily")
		if err != nil {
			return err
		}
		jobs, err := fetch[[]listedJob](s, "/v1/jobs")
		if err != nil {
			return err
		}
		list := []previewed{}
		for _, j := range jobs {
			if (*only == "" || *only == j.Name) && j.ParentJob == "" && (*disabled || !j.Disabled) {
				list = j.preview(list, zone.Timezone, from, to)
			}
			if len(list) > previewMax {
				return fmt.Errorf("more than %d runs are to come in that time; make it shorter, or name a --job", previewMax)
			}
		}
		slices.SortStableFunc(list, func(a, b previewed) int { return a.Due.Compare(b.Due) })
		return table(s, list, "DUE JOB CLOCK", func(p previewed) []string {
			return []string{p.Due.Format(time.RFC3339), p.Job, p.Clock}
		})
	}
}

// preview adds the ticks of a job in [from, to) to list, up to one more than previewMax. zone is the cluster's.
func (j listedJob) preview(list []previewed, zone string, from, to time.Time) []previewed {
	next := j.Next
	if j.Disabled {
		j.Disabled = false
		next = timeOf(j.firstTick(zone, time.Now().UnixNano(), 0))
	}
	sched := j.schedule(zone)
	loc, err := loadZone(j.zone(zone))
	if err != nil || next.Unix() <= 0 {
		return list // its schedule has no tick
	}
	loc = sched.zone(loc)
	_, offset := next.In(loc).Zone()
	for next.Before(to) && len(list) <= previewMax {
		p := previewed{Job: j.Name, Due: next.In(loc)}
		_, now := p.Due.Zone()
		if now != offset {
			p.Clock = fmt.Sprintf("%+d min", (now-offset)/60)
		}
		if offset = now; !next.Before(from) {
			list = append(list, p)
		}
		at := j.within(sched.next(next))
		if at == never {
			break
		}
		next = timeOf(at)
	}
	return list
}

func setupApply(fs *flag.FlagSet, s *invocation) func() error {
	file := fs.String("f", "", "`file` of jobs, JSON of one or of a list; of a directory all *.json; -: standard input; required")
	prune := fs.Bool("prune", false, "delete the jobs with the --metadata that are not in the file")
	dry := fs.Bool("dry-run", false, "only check the file, and show what would change")
	q, metadata := url.Values{"dry-run": {""}}, metadataFlag(fs)
	return func() error {
		if *prune != (*metadata != nil) {
			return usageError{errors.New("--prune, --metadata: belong together, so that only jobs of the file's kind are deleted")}
		}
		if err := need("f", *file, ""); err != nil {
			return err
		}
		docs, err := readJobs(*file)
		if err == nil && len(docs) == 0 {
			err = fmt.Errorf("%s: has no jobs; \"belfry delete\" deletes one", *file)
		}
		if err != nil {
			return err
		}
		if *prune {
			q = metadataQuery(*metadata)
			q.Set("prune", "")
			q.Set("dry-run", "")
		}
		if err := s.restore(q, docs); err != nil {
			return err
		}
		changed, err := s.showChanges(docs, *prune, *metadata)
		if q.Del("dry-run"); err == nil && changed && !*dry {
			err = s.restore(q, docs)
		}
		return err
	}
}

// metadataFlag adds the repeatable flag that selects jobs.
func metadataFlag(fs *flag.FlagSet) *map[string]string {
	m := new(map[string]string)
	mapFlag(fs, "metadata", m, "only with this `key=value` in their metadata; may be repeated")
	return m
}

func metadataQuery(metadata map[string]string) url.Values {
	q := url.Values{}
	for k, v := range metadata {
		q.Set("metadata["+k+"]", v)
	}
	return q
}

// readJobs returns the documents of the jobs in a file, in all *.json of a directory, or for "-" in standard input.
func readJobs(name string) (docs []json.RawMessage, err error) {
	files := []string{name}
	if info, err := os.Stat(name); name != "-" && err == nil && info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(name, "*.json")); err != nil {
			return nil, err
		}
	}
	for _, file := range files {
		text, err := readInput(file)
		if err != nil {
			return nil, err
		}
		var list []json.RawMessage
		if err = json.Unmarshal(text, &list); err != nil {
			var one map[string]json.RawMessage
			if err = json.Unmarshal(text, &one); err == nil {
				list = []json.RawMessage{text}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: must be JSON of a job, or of a list of jobs: %w", file, err)
		}
		docs = append(docs, list...)
	}
	return docs, nil
}

// readInput reads a file, or for "-" standard input.
func readInput(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(name)
}

// restore sends jobs, of which all are stored or none.
func (s *invocation) restore(q url.Values, docs []json.RawMessage) error {
	var body bytes.Buffer // to which no write fails
	form := multipart.NewWriter(&body)
	file, _ := form.CreateFormFile("file", "jobs.json")
	err := json.NewEncoder(file).Encode(docs)
	if err != nil {
		return err
	}
	form.Close()
	resp, err := s.send(s.ctx, http.MethodPost, "/v1/restore?"+q.Encode(), form.FormDataContentType(), &body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if w := resp.Header.Get(headerWarning); w != "" {
		fmt.Fprintf(s.stderr, "belfry: %s\n", w)
	}
	_, err = io.Copy(io.Discard, resp.Body) // it ends early if the restore did
	return err
}

// showChanges prints what the jobs would change of those that there are, and reports whether it is anything.
func (s *invocation) showChanges(docs []json.RawMessage, prune bool, metadata map[string]string) (changed bool, err error) {
	present, err := fetch[[]job](s, "/v1/jobs")
	if err != nil {
		return false, err
	}
	old, kept, n := map[string]job{}, map[string]bool{}, map[string]int{}
	for _, j := range present {
		old[j.Name] = j
	}
	for _, doc := range docs {
		j, err := decodeJob(doc, job{})
		if err != nil {
			return false, err
		}
		was, ok := old[j.Name]
		kept[j.Name] = true
		lines, err := j.changes(was)
		switch {
		case err != nil:
			return false, err
		case !ok:
			n["new"]++
			fmt.Fprintf(s.stdout, "+ %s\n", j.Name)
		case len(lines) > 0:
			n["changed"]++
			fmt.Fprintf(s.stdout, "~ %s\n%s", j.Name, strings.Join(lines, ""))
		default:
			n["unchanged"]++
		}
	}
	for _, j := range present {
		if prune && !kept[j.Name] && !slices.ContainsFunc(sortedKeys(metadata), func(k string) bool {
			v, ok := j.Metadata[k]
			return !ok || v != metadata[k]
		}) {
			n["deleted"]++
			fmt.Fprintf(s.stdout, "- %s\n", j.Name)
		}
	}
	fmt.Fprintf(s.stdout, "%d new, %d changed, %d deleted, %d unchanged\n", n["new"], n["changed"], n["deleted"], n["unchanged"])
	return n["new"]+n["changed"]+n["deleted"] > 0, nil
}

// changes returns a line for each field in which the definition differs from what the job was. What looks secret is
// hidden.
func (j job) changes(was job) (lines []string, err error) {
	var docs, shown [2]map[string]json.RawMessage
	for i, j := range []job{was, j} {
		j.dropRecord()
		j.Concurrency = cmp.Or(j.Concurrency, concurrencyAllow)
		doc, err := json.Marshal(j)
		if err == nil {
			err = json.Unmarshal(doc, &docs[i])
		}
		if err == nil {
			doc, err = hideSecrets(doc)
		}
		if err == nil {
			err = json.Unmarshal(doc, &shown[i])
		}
		if err != nil {
			return nil, err
		}
	}
	names := map[string]bool{}
	for _, doc := range docs {
		for name := range doc {
			names[name] = true
		}
	}
	for _, name := range sortedKeys(names) {
		if !bytes.Equal(docs[0][name], docs[1][name]) {
			lines = append(lines, printable(fmt.Sprintf("    %s: %s -> %s", name,
				cmp.Or(string(shown[0][name]), "none"), cmp.Or(string(shown[1][name]), "none")))+"\n")
		}
	}
	return lines, nil
}

func setupExport(fs *flag.FlagSet, s *invocation) func() error {
	metadata := metadataFlag(fs)
	return func() error {
		jobs, err := fetch[[]job](s, "/v1/jobs?"+metadataQuery(*metadata).Encode())
		if err != nil {
			return err
		}
		for i := range jobs {
			jobs[i].dropRecord()
		}
		return s.printJobs(jobs)
	}
}

// printJobs prints jobs as apply takes them.
func (s *invocation) printJobs(jobs []job) error {
	e := json.NewEncoder(s.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(append([]job{}, jobs...))
}

const disabledHelp = "print them as disabled jobs"

func setupImportCrontab(fs *flag.FlagSet, s *invocation) func() error {
	c := newCrontab(localZone(s.environ), time.Now())
	fs.BoolVar(&c.system, "system", false, "lines have a user before the command, as in /etc/crontab and /etc/cron.d")
	fs.BoolVar(&c.pattern.Disabled, "disabled", false, disabledHelp)
	mapFlag(fs, "tag", &c.pattern.Tags, "`key=value` of the nodes that run the jobs; without tags every node does; may be repeated")
	return func() error {
		if !c.system && strings.HasPrefix(s.args[0], "/etc/cron") {
			return usageError{fmt.Errorf("%s: lines there have a user before the command; add --system", s.args[0])}
		}
		text, err := readInput(s.args[0])
		if err != nil {
			return err
		}
		if err := c.read(string(text)); err != nil {
			return fmt.Errorf("nothing is imported, because of these lines:\n%w", err)
		}
		return s.printImport(c.jobs, c.report())
	}
}

// A crontab is read line by line. Its lines mean what they do to Vixie cron and its descendants.
type crontab struct {
	system  bool      // lines have a user before the command
	pattern job       // what all jobs have
	zone    string    // of times, where the crontab names no other
	now     time.Time // clock changes of the year after it are reported

	env     []string        // of the lines below, NAME=value
	comment []string        // directly above the next line
	names   map[string]bool // of the jobs
	jobs    []job
	notes   []string // what differs from cron
}

// newCrontab returns an empty crontab.
func newCrontab(zone string, now time.Time) *crontab {
	return &crontab{pattern: job{Timezone: zone, Metadata: map[string]string{"from": "cron"}}, zone: zone, now: now, names: map[string]bool{}}
}

// read reads all lines. The error has a line for each that is wrong.
func (c *crontab) read(text string) error {
	var errs []error
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		line = strings.TrimSpace(line)
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			c.remember(strings.Trim(comment, "# \t"))
			continue
		}
		if err := c.line(n, line); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
		}
		c.comment = nil
	}
	return errors.Join(errs...)
}

// remember keeps a comment, which may describe the line below it. Headings of the columns, ornaments, and lines that are
// only commented out do not.
func (c *crontab) remember(comment string) {
	_, _, set := cronSetting(comment)
	fields, _ := cutCron(comment)
	_, err := cronSchedule(fields)
	switch low := strings.ToLower(comment); {
	case set || err == nil || strings.Contains(low, "dom") && strings.Contains(low, "dow"):
		c.comment = nil
	case strings.ContainsFunc(comment, unicode.IsLetter) && strings.IndexAny(comment, ".|*+-=") != 0:
		c.comment = append(c.comment, comment)
	}
}

func (c *crontab) line(n int, line string) error {
	name, value, ok := cronSetting(line)
	switch {
	case line == "":
	case !utf8.ValidString(line):
		return errors.New("is not UTF-8")
	case !ok && strings.HasPrefix(line, "@reboot"):
		c.note(n, "@reboot is left out: belfry runs nothing when a machine starts; a unit of systemd can")
	case !ok:
		return c.entry(n, line)
	case name == "MAILTO":
		if c.pattern.OwnerEmail = value; value != "" && (strings.Count(value, "@") != 1 || strings.Contains(value, ",")) {
			c.note(n, "no mail goes to %q; owner_email needs one address, such as ops@example.com", value)
		}
	case name == "CRON_TZ":
		if _, err := loadZone(value); err != nil {
			return fmt.Errorf("CRON_TZ: %w", err)
		}
		c.pattern.Timezone = value
	case strings.HasSuffix(value, `\`): // which would join it with the next in executor_config.env
		return fmt.Errorf("%s: the value must not end in a backslash; set it in the command", name)
	default:
		c.env = slices.DeleteFunc(c.env, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
		c.env = append(c.env, name+"="+value)
	}
	return nil
}

// cronSetting reads a line NAME=value, of which either side may be in quotes.
func cronSetting(line string) (name, value string, ok bool) {
	unquoted := func(text string) string {
		text = strings.TrimSpace(text)
		if n := len(text); n > 1 && (text[0] == '"' || text[0] == '\'') && text[n-1] == text[0] {
			return text[1 : n-1]
		}
		return text
	}
	name, value, ok = strings.Cut(line, "=")
	name = unquoted(name)
	return name, unquoted(value), ok && name != "" && !strings.ContainsAny(name, " \t")
}

// setting returns the value of a variable, "" if it has none.
func (c *crontab) setting(name string) string {
	for _, entry := range c.env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// entry makes a job of line n.
func (c *crontab) entry(n int, line string) (err error) {
	fields, command := cutCron(line)
	j := c.pattern
	j.Executor, j.ExecutorConfig = executorShell, map[string]string{}
	if user, rest := cutWord(command); c.system {
		if j.ExecutorConfig["su"], command = user, rest; strings.ContainsAny(user, "/=;&|[") {
			return fmt.Errorf("%q is no user; if the lines have none, leave --system out", user)
		}
	} else if user == "root" {
		return errors.New("has a user before the command; add --system")
	}
	command, input := cutInput(command)
	j.Schedule, err = cronSchedule(fields)
	if err == nil && command == "" {
		err = errors.New("has no command")
	}
	j.Name = c.nameOf(command)
	switch {
	case errors.Is(err, errBothDays):
		c.note(n, "%s is left out: %v", j.Name, err)
		return nil
	case err != nil:
		return err
	case input != "":
		j.ExecutorConfig["payload"] = base64.StdEncoding.EncodeToString([]byte(input))
	}
	if shell := cmp.Or(c.setting("SHELL"), "/bin/sh"); shell == "/bin/sh" {
		j.ExecutorConfig["shell"] = "true"
	} else {
		command = shell + " -c '" + strings.ReplaceAll(command, "'", `'\''`) + "'"
	}
	j.ExecutorConfig["command"] = command
	if home := c.setting("HOME"); home != "" {
		j.ExecutorConfig["cwd"] = home
	}
	var env []string
	for _, entry := range c.env {
		if !strings.HasPrefix(entry, "RANDOM_DELAY=") {
			env = append(env, strings.ReplaceAll(entry, ",", `\,`))
		}
	}
	if env != nil {
		j.ExecutorConfig["env"] = strings.Join(env, ",")
	}
	if j.DisplayName = strings.Join(c.comment, " "); len(j.DisplayName) > 200 {
		j.DisplayName = ""
	}
	if err := j.validate("UTC", c.now.UnixNano()); err != nil {
		return err
	}
	c.jobs, c.names[j.Name] = append(c.jobs, j), true
	if delay := c.setting("RANDOM_DELAY"); delay != "" && delay != "0" {
		c.note(n, "%s starts on time, and not up to %s minutes late; ~ as its minute spreads jobs over the hour", j.Name, delay)
	}
	if text := clockChanges(j, c.now); text != "" && fields[0][0] != '*' && fields[1][0] != '*' {
		c.note(n, "%s: cron runs it once all the same when the clock changes; here it runs %s", j.Name, text)
	}
	return nil
}

func (c *crontab) note(n int, format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf("line %d: ", n)+fmt.Sprintf(format, args...))
}

// report says what differs from cron, and what the jobs need.
func (c *crontab) report() []string {
	notes := append(c.notes, fmt.Sprintf("%d jobs", len(c.jobs)))
	if len(c.jobs) > 0 {
		notes = append(notes, fmt.Sprintf("times are in %s, this machine's zone, where CRON_TZ names no other; TZ=... before this command sets it", c.zone),
			"cron starts commands as their user in the home directory; belfry as the node's user, see su, where the node was started, see cwd")
	}
	if len(c.jobs) > 0 && c.pattern.Tags == nil {
		notes = append(notes, "without --tag, every node runs the jobs")
	}
	return notes
}

// printImport prints jobs for apply, and on standard error what is to know of them.
func (s *invocation) printImport(jobs []job, notes []string) error {
	users := map[string]bool{}
	for _, j := range jobs {
		if user := j.ExecutorConfig["su"]; user != "" {
			users[user] = true
		}
	}
	if len(users) > 0 {
		notes = append(notes, "nodes need --allow-su="+strings.Join(sortedKeys(users), ","))
	}
	for _, note := range notes {
		fmt.Fprintf(s.stderr, "belfry: %s\n", printable(note))
	}
	return s.printJobs(jobs)
}

func setupImportDkron(fs *flag.FlagSet, s *invocation) func() error {
	disabled := fs.Bool("disabled", false, disabledHelp)
	s.tlsFlags(fs)
	return func() error {
		source, isURL := strings.CutSuffix(strings.TrimSuffix(s.args[0], "/"), "/v1/jobs")
		var docs []json.RawMessage
		var err error
		if isURL = isURL || strings.Contains(source, "://"); isURL {
			s.addr = source
			for _, kv := range s.environ {
				if secret, ok := strings.CutPrefix(kv, "DKRON_TOKEN="); ok { // BELFRY_TOKEN is for our nodes alone
					s.token = secret
				}
			}
			var body []byte
			if body, err = s.askAll(s.ctx, http.MethodGet, "/v1/jobs"); err == nil {
				err = decode(body, &docs)
			}
		} else {
			docs, err = readJobs(source)
		}
		if err != nil {
			return err
		}
		jobs, notes := fromDkron(docs, *disabled, time.Now())
		return s.printImport(jobs, notes)
	}
}

// fromDkron returns the jobs of a Dkron that can be stored here, with their counters and last times, and notes by job on
// what is otherwise here. Those that were enabled have from=dkron in their metadata.
func fromDkron(docs []json.RawMessage, disabled bool, now time.Time) (jobs []job, notes []string) {
	left := map[string]bool{}
	note := func(j job, format string, args ...any) {
		notes = append(notes, j.Name+": "+fmt.Sprintf(format, args...))
	}
	for i, doc := range docs {
		j, err := decodeJob(doc, job{})
		if err == nil {
			err = j.validate("UTC", now.UnixNano())
		}
		if err != nil {
			_ = json.Unmarshal(doc, &struct{ Name *string }{&j.Name})
			j.Name = cmp.Or(j.Name, fmt.Sprintf("job %d", i+1))
			left[j.Name] = true
			note(j, "is left out: %v", err)
			continue
		}
		if text := j.warning(nil); text != "" {
			note(j, "%s", text)
		}
		if strings.HasPrefix(j.Schedule, "@") && descriptors[j.Schedule] != "" && j.Timezone != "" {
			note(j, "%s is in its zone %s, which Dkron ignores for such a schedule", j.Schedule, j.Timezone)
		}
		from := "dkron"
		if j.Disabled {
			from = "dkron-disabled"
		}
		j.Metadata = maps.Clone(j.Metadata)
		if j.Metadata == nil {
			j.Metadata = map[string]string{}
		}
		if was, ok := j.Metadata["from"]; ok {
			note(j, "its metadata from=%s is now from=%s", was, from)
		}
		j.Metadata["from"], j.Disabled = from, j.Disabled || disabled
		jobs = append(jobs, j)
	}
	for n := -1; n != len(jobs); { // a job that is left out takes those below it along
		n = len(jobs)
		jobs = slices.DeleteFunc(jobs, func(j job) bool {
			if left[j.ParentJob] {
				left[j.Name] = true
				note(j, "is left out with its parent %s", j.ParentJob)
			}
			return left[j.Name]
		})
	}
	return jobs, append(notes, fmt.Sprintf("%d jobs", len(jobs)),
		"jobs without a timezone run in the cluster's (--timezone), which should be the one of Dkron's servers")
}

// cutWord cuts the first word off.
func cutWord(text string) (word, rest string) {
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		return text[:i], strings.TrimLeft(text[i:], " \t")
	}
	return text, ""
}

// cutCron cuts the fields that say when off a line, or the word that stands for them.
func cutCron(line string) (fields []string, rest string) {
	rest = strings.TrimPrefix(line, "-") // in SUSE: without a line in the log
	if strings.HasPrefix(line, "@") {
		word, rest := cutWord(line)
		meaning := strings.Fields(descriptors[strings.Replace(strings.ToLower(word), "every_minute", "minutely", 1)])
		return meaning[min(1, len(meaning)):], rest
	}
	for range fieldCount - 1 {
		var field string
		if field, rest = cutWord(rest); field != "" {
			fields = append(fields, field)
		}
	}
	return fields, rest
}

var errBothDays = errors.New("cron runs it on days that match both day fields, as one begins with *, and here either would do; " +
	"write one of them, and let the command check the other")

// openPattern matches a field that has a step after a single value, or a random value of a part of the field.
var openPattern = regexp.MustCompile(`(^|,)\w+/|[^,]~|~[^,]`)

// cronSchedule returns the schedule that means what the five fields of a line mean.
func cronSchedule(fields []string) (string, error) {
	if len(fields) != fieldCount-1 {
		return "", errors.New("is no NAME=value, and has no five fields or a word such as @daily before a command")
	}
	texts, all := append([]string{"0"}, fields...), [fieldCount]bool{}
	for i := minuteField; i < fieldCount; i++ {
		f, modulus := calendarFields[i], 60
		if i == weekdayField {
			f.max, modulus = 7, 7 // which is Sunday, as 0
		}
		if texts[i] == "~" {
			continue
		}
		segment, _, err := f.parse(texts[i])
		if openPattern.MatchString(texts[i]) {
			err = fmt.Errorf("%s %q: crons differ in what that is; write a range before a step, as in 5-59/10, and ~ alone", f.name, texts[i])
		}
		if err != nil {
			return "", err
		}
		values := map[int]bool{}
		for item := range strings.SplitSeq(segment, ",") {
			var low, high, step int
			fmt.Sscanf(item, "%d-%d/%d", &low, &high, &step) // as parse writes it
			for v := low; v <= high; v += step {
				values[v%modulus] = true
			}
		}
		all[i] = len(values) == calendarFields[i].max-f.min+1
		if i == weekdayField && strings.ContainsAny(texts[i], "7/") {
			texts[i] = strings.ReplaceAll(strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(values))), "[]"), " ", ",")
		}
	}
	day, weekday := all[dayField], all[weekdayField]
	switch either := fields[dayField-1][0] != '*' && fields[weekdayField-1][0] != '*'; {
	case either && (day || weekday):
		texts[dayField], texts[weekdayField] = "*", "*"
	case either:
	case day:
		texts[dayField] = "*"
	case weekday:
		texts[weekdayField] = "*"
	default:
		return "", errBothDays
	}
	return strings.Join(texts, " "), nil
}

// cutInput cuts a command at its first %, after which its standard input follows, where % begins a new line. \% is %.
func cutInput(text string) (command, input string) {
	var parts [2]strings.Builder
	at := 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text):
			if i++; text[i] != '%' {
				parts[at].WriteByte('\\')
			}
			parts[at].WriteByte(text[i])
		case text[i] != '%':
			parts[at].WriteByte(text[i])
		case at == 0:
			at = 1
		default:
			parts[at].WriteByte('\n')
		}
	}
	if input = parts[1].String(); input != "" && !strings.HasSuffix(input, "\n") {
		input += "\n"
	}
	return strings.TrimSpace(parts[0].String()), input
}

// clockChanges says what the schedule of a job means at the next clock changes of its zone, "" if they change nothing.
func clockChanges(j job, now time.Time) string {
	sched, err := parseSchedule(j.Schedule, "UTC", j.Name)
	loc, zoneErr := loadZone(j.Timezone)
	if err != nil || zoneErr != nil {
		return ""
	}
	var texts []string
	for at := now.In(loc); len(texts) < 2; {
		if _, at = at.ZoneBounds(); at.IsZero() || at.After(now.AddDate(1, 0, 0)) {
			break
		}
		_, before := at.Add(-1).Zone()
		_, after := at.Zone()
		wall := at.UTC().Add(time.Duration(min(before, after)) * time.Second) // the times that are left out, or repeated
		end := wall.Add(time.Duration(max(before-after, after-before)) * time.Second)
		if next := sched.next(wall.Add(-1)); !next.IsZero() && next.Before(end) {
			texts = append(texts, map[bool]string{true: "not at all on ", false: "twice on "}[after > before]+at.Format(time.DateOnly))
		}
	}
	return strings.Join(texts, ", ")
}

// What a command may begin with that says nothing about what it does, and what begins a part that says nothing.
var (
	cronWrappers = strings.Fields("bash chronic command dash do env exec flock if ionice java ksh nice node nohup perl php python " +
		"python2 python3 ruby setsid sh sudo then time timeout zsh")
	cronPreludes = strings.Fields(". : [ [[ cd export mkdir set sleep source test true ulimit umask")
)

// nameOf makes a name of a command, which no other job has.
func (c *crontab) nameOf(command string) string {
	var words []string
	for part := range strings.SplitSeq(strings.NewReplacer("&&", "\n", "|", "\n", ";", "\n").Replace(command), "\n") {
		if words = tellingWords(part); words != nil {
			break
		}
	}
	words = strings.FieldsFunc(strings.ToLower(strings.Join(words, "-")), func(r rune) bool {
		return !unicode.IsLower(r) && !unicode.IsDigit(r) && r != '_'
	})
	base := strings.Join(words, "-")
	base = strings.TrimRight(strings.ToValidUTF8(base[:min(len(base), 40)], ""), "-")
	if validateName(base) != nil {
		base = "cron"
	}
	name := base
	for i := 2; c.names[name]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	return name
}

// tellingWords returns up to three words of a simple command that say what it does, nil if none does.
func tellingWords(command string) (words []string) {
	for word := range strings.FieldsSeq(command) {
		if strings.ContainsAny(word, "<>#") || len(words) == 3 {
			break
		}
		word = strings.Trim(word, "\"'`(){}$&")
		base := path.Base(strings.TrimRight(word, "/"))
		ext := path.Ext(base)
		_, number := strconv.Atoi(strings.TrimRight(base, "smhd"))
		switch {
		case len(words) == 0 && slices.Contains(cronPreludes, base) && word == base:
			return nil
		case word == "" || word[0] == '-' || strings.Contains(word, "=") || number == nil || ext == ".lock" || ext == ".pid":
		case len(words) == 0 && slices.Contains(cronWrappers, base):
		case slices.Contains([]string{".sh", ".py", ".pl", ".php", ".rb", ".jar", ".js"}, strings.ToLower(ext)):
			words = append(words, strings.TrimSuffix(base, ext))
		default:
			words = append(words, base)
		}
	}
	return words
}

func showMembers(s *invocation) error {
	_, err := show(s, "/v1/members", "NODE ADDRESS STATUS SERVER VERSION", func(m memberView) []string {
		return []string{m.Name, m.address(), m.StatusText, m.Tags["server"], m.Tags["version"]}
	})
	return err
}

func (m memberView) address() string { return net.JoinHostPort(m.Addr, strconv.Itoa(m.Port)) }

func leave(s *invocation) error {
	_, err := s.askAll(s.ctx, http.MethodPost, "/v1/leave")
	return err
}

func listPeers(s *invocation) error {
	members, err := fetch[[]memberView](s, "/v1/members") // without the right to list them, the status is unknown
	if errors.Is(err, errNoAPI) {
		return err
	}
	_, err = show(s, "/v1/raft/peers", "NODE ID ADDRESS STATE VOTER STATUS", func(p raftPeer) []string {
		state, status := "follower", "unknown"
		if p.Leader {
			state = "leader"
		}
		for _, m := range members {
			if m.Name == p.Node && m.address() == p.Address {
				status = m.StatusText
			}
		}
		return []string{p.Node, p.ID, p.Address, state, strconv.FormatBool(p.Voter), status}
	})
	return err
}

func setupRemovePeer(fs *flag.FlagSet, s *invocation) func() error {
	peer := fs.String("peer-id", "", "`id` of the server, as list-peers shows it, or its name if no other has it")
	return func() error {
		if err := need("peer-id", *peer, "; \"belfry raft list-peers\" shows the ids"); err != nil {
			return err
		}
		return s.removePeer(*peer)
	}
}

// call returns the setup of a command that sends a request without a body and prints the response. id is the flag whose
// value ends the path, unless the command's argument does; "": none.
func call(method, path, id string) func(*flag.FlagSet, *invocation) func() error {
	return func(fs *flag.FlagSet, s *invocation) func() error {
		value := new(string)
		if id != "" {
			value = fs.String(id, "", "the same as the argument")
		}
		return func() error {
			if len(s.args) > 0 && *value != "" {
				return usageError{fmt.Errorf("--%s: the argument says %q already", id, s.args[0])}
			}
			if len(s.args) > 0 {
				*value = s.args[0]
			}
			if err := need(id, *value, ""); id != "" && err != nil {
				return err
			}
			return s.printJSON(s.ask(s.ctx, method, path+url.PathEscape(*value), nil))
		}
	}
}

func setupBootstrap(fs *flag.FlagSet, s *invocation) func() error {
	dir := fs.String("data-dir", "belfry.data", "`directory` of the server, whose secret proves that you may")
	return func() error {
		secret, err := os.ReadFile(filepath.Join(*dir, bootstrapFile))
		if err != nil {
			return fmt.Errorf("--data-dir %s: there is no bootstrap secret; start the server with --acl, "+
				"or use the management token if there is one already: %w", *dir, err)
		}
		doc := map[string]string{"Secret": strings.TrimSpace(string(secret))}
		return s.printJSON(s.ask(s.ctx, http.MethodPost, "/v1/acl/bootstrap", doc))
	}
}

func setupApplyPolicy(fs *flag.FlagSet, s *invocation) func() error {
	name, file := fs.String("name", "", "required"), fs.String("rules-file", "", "required")
	return func() error {
		if err := cmp.Or(need("name", *name, ""), need("rules-file", *file, "")); err != nil {
			return err
		}
		rules, err := os.ReadFile(*file)
		if err != nil {
			return fmt.Errorf("--rules-file: %w", err)
		}
		path := "/v1/acl/policies/" + url.PathEscape(*name)
		return s.printJSON(s.ask(s.ctx, http.MethodPost, path, policy{*name, string(rules)}))
	}
}

func setupCreateToken(fs *flag.FlagSet, s *invocation) func() error {
	name := fs.String("name", "", "required")
	kind := fs.String("type", tokenClient, "`type` of the token: client or management")
	ttl := fs.String("ttl", "", "`time` after which it is no longer valid, such as 24h")
	var policies []string
	fs.Func("policy", "`name` of a policy; may be given several times", list(&policies))
	return func() error {
		if err := need("name", *name, ""); err != nil {
			return err
		}
		doc := map[string]any{"Name": *name, "Type": *kind, "ExpirationTTL": *ttl}
		if policies != nil {
			doc["Policies"] = policies
		}
		return s.printJSON(s.ask(s.ctx, http.MethodPost, "/v1/acl/tokens", doc))
	}
}

// removePeer removes a server from the voters. peer is its id, or its name if that is unique.
func (s *invocation) removePeer(peer string) error {
	peers, err := fetch[[]raftPeer](s, "/v1/raft/peers") // without the right to list them, peer must be an id
	switch {
	case errors.Is(err, errNoAPI):
		return err
	case errors.Is(err, errNotThere):
		return fmt.Errorf("--http-addr %s: %w", s.addr, errNoAPI)
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
	if _, err = s.ask(s.ctx, http.MethodDelete, "/v1/raft/peers/"+url.PathEscape(peer), nil); errors.Is(err, errNotThere) {
		err = errNoServer
	}
	return err
}

// setupRecover makes a stopped server the only voter of a new cluster.
func setupRecover(fs *flag.FlagSet, s *invocation) func() error {
	dir := fs.String("data-dir", "belfry.data", "`directory` of the server")
	sure := fs.Bool("yes-i-lost-a-majority", false,
		"confirm that the other servers never come back: what only they had acknowledged is lost")
	return func() error {
		if !*sure {
			return usageError{errors.New("--yes-i-lost-a-majority: is required; if a majority of the servers can be started " +
				"again, start them: recovery loses what only the others had acknowledged")}
		}
		id := crand.Text()
		if err := recoverServer(*dir, id); err != nil {
			return err
		}
		fmt.Fprintf(s.stdout, "This server is the only one of the new cluster %s. Start it, and then the other nodes,\n"+
			"servers and agents, with empty data directories and --retry-join. Agents that have --adopt can keep theirs.\n", id)
		return nil
	}
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
