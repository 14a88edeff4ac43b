// belfry is a distributed job scheduler in one program: cron for a cluster of machines. It speaks Dkron's REST API.
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
	"sync"
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
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2)
	var child *os.Process
	self, err := os.Executable()
	if err == nil {
		child, err = os.StartProcess(self, os.Args, &os.ProcAttr{
			Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
			Sys:   &syscall.SysProcAttr{Setpgid: true}, // or Ctrl-C in a terminal would signal it twice
		})
	}
	if err != nil {
		return exitStatus(err, os.Stderr)
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

// A statusError ends the program with a status other than exitError.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// usage returns the error for a mistake in the command itself: nothing was done.
func usage(format string, args ...any) error {
	return statusError{fmt.Errorf(format, args...), exitUsage}
}

// exitStatus prints an error and returns the exit status for it.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	fmt.Fprintf(stderr, "belfry: %v\n", err)
	if e, ok := errors.AsType[statusError](err); ok {
		return e.status
	}
	return exitError
}

// printUsage prints a line for each command.
func printUsage(w io.Writer, list []subcommand) {
	var rows [][]string
	for _, c := range list {
		rows = append(rows, []string{"  belfry " + c.synopsis(), c.help})
	}
	printRows(w, rows) // fails if nobody reads it
}

// printRows prints rows with their cells one below the other.
func printRows(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, cells := range rows {
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// alone returns the flags of "belfry" without arguments: those of a server that bootstraps a cluster of one, unless the
// environment says otherwise.
func alone(environ []string) []string {
	vars := variables(environ)
	if server, ok := vars["server"]; ok {
		if on, err := strconv.ParseBool(server.value); err != nil || !on {
			return nil
		}
	}
	for _, name := range []string{"bootstrap-expect", "join", "retry-join"} {
		if _, ok := vars[name]; ok {
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
		fmt.Fprintf(fs.Output(), "belfry %s: %s.\n\nExample:\n  belfry %s\n", c.synopsis(), c.help, c.example)
		heading := "\nFlags:\n"
		shown := flag.NewFlagSet("", flag.ContinueOnError)
		shown.SetOutput(fs.Output())
		fs.VisitAll(func(f *flag.Flag) {
			if f.Usage != "" { // those of Dkron that mean nothing here have none
				io.WriteString(fs.Output(), heading)
				heading = ""
				shown.Var(f.Value, f.Name, f.Usage)
				shown.Lookup(f.Name).DefValue = f.DefValue
			}
		})
		shown.PrintDefaults()
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
		return statusError{err, exitUsage}
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
	var running sync.WaitGroup
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	running.Go(func() {
		for range signals {
			fn()
		}
	})
	return func() {
		signal.Stop(signals) // no signal is sent after that
		close(signals)
		running.Wait()
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
	linesBytesMax = 4 << 20     // queued: room for several outputs from the processor log
	linesPatience = time.Second // for writing the queue when the program ends
)

// lines writes lines in the background, so a slow reader never blocks the program. It drops and counts lines while the
// queue is full, and logs their number when there is room again.
type lines struct {
	mu      sync.Mutex
	queue   []byte        // guarded by mu
	dropped int           // guarded by mu
	closed  bool          // guarded by mu
	more    chan struct{} // of capacity one: one of the above has changed
	ended   chan struct{}
}

func newLines(w io.Writer) *lines {
	l := &lines{more: make(chan struct{}, 1), ended: make(chan struct{})}
	go l.run(w)
	return l
}

// Write queues a line. It never fails and never blocks.
func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue)+len(line) <= linesBytesMax {
		l.queue = append(l.queue, line...)
	} else {
		l.dropped++
	}
	l.wakeLocked()
	return len(line), nil
}

func (l *lines) wakeLocked() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func (l *lines) run(w io.Writer) {
	defer close(l.ended)
	log := slog.New(slog.NewTextHandler(w, nil))
	for closed := false; !closed; {
		<-l.more
		l.mu.Lock()
		queue, dropped := l.queue, l.dropped
		l.queue, l.dropped, closed = nil, 0, l.closed
		l.mu.Unlock()
		w.Write(queue) // there is nowhere to report an error
		if dropped > 0 {
			log.Warn("lines were dropped here, because the reader was too slow", "lines", dropped)
		}
	}
}

// close waits until the queue is written, at most linesPatience.
func (l *lines) close() {
	l.mu.Lock()
	l.closed = true
	l.wakeLocked()
	l.mu.Unlock()
	select {
	case <-l.ended:
	case <-time.After(linesPatience):
	}
}

// firstSignal returns a context that ends on the first SIGINT or SIGTERM. A second one kills the process.
func firstSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// config holds the settings of a node, from flags or environment variables. The flag of a field's name says what the
// field means, in which unit, and its default.
type config struct {
	Server, Adopt, ACL, Insecure                                      bool
	BootstrapExpect, RetryMax, RaftMultiplier, MetricsJobs            int
	MaxConcurrent, ExecutionsKept, FailuresKept                       int
	NodeName, BindAddr, AdvertiseAddr, HTTPAddr, HTTPPrefix, DataDir  string
	Encrypt, EncryptFile, ConfigFile                                  string
	LogFormat, Datacenter, Region, Timezone                           string
	Join, RetryJoin, AllowedHosts, CORSOrigins                        []string
	Tags                                                              map[string]string
	RetryInterval, CatchupWindow, AuditKept, LostAfter, ShutdownGrace time.Duration
	AuditKeptBytes                                                    int64
	LogLevel                                                          slog.Level
	Statsd                                                            statsd
	TLS                                                               tlsFiles     // of the API
	Limits                                                            nodeLimits   // of what jobs may do here
	Notify                                                            notifyConfig // who is told of what

	nodeNamed bool     // NodeName was given; otherwise it is the host's name
	keyFile   string   // the file that the cluster key is from; "": none
	Unused    []string // environment variables with our prefix that match no flag
	Ignored   []string // flags of Dkron that mean nothing here
	host      host
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
func parseConfig(args, environ []string, help io.Writer) (cfg config, err error) {
	fs := cfg.flags(environ)
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
		if cfg.Encrypt, err = readNamed("--encrypt-file", cfg.EncryptFile); err != nil {
			return cfg, err
		} else if cfg.Encrypt == "" {
			return cfg, fmt.Errorf("--encrypt-file %s: is empty; write the output of \"belfry keygen\" to it",
				cfg.EncryptFile)
		}
	}
	typed := slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		return name == "encrypt" && arg[0] == '-'
	})
	if typed && cfg.Limits.AllowSu != nil {
		return cfg, errors.New("--encrypt: with --allow-su, jobs of another user could read the key on this command " +
			"line and take over every node; use --encrypt-file, or BELFRY_ENCRYPT in the environment")
	}
	set := given(fs)
	cfg.nodeNamed, cfg.Unused = set["node-name"], unused(fs, environ)
	if _, err := loadZone(cfg.Timezone); err != nil && !set["timezone"] {
		return cfg, fmt.Errorf("TZ: %w; or name one with --timezone", err)
	}
	return cfg, cfg.validate()
}

// flags returns the flags of an agent, which set c.
func (c *config) flags(environ []string) *flag.FlagSet {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	fs := newFlagSet("agent")
	fs.BoolVar(&c.Server, "server", false, "keep state and lead; without it the node only runs jobs")
	fs.IntVar(&c.BootstrapExpect, "bootstrap-expect", 0, "`number` of servers that bootstrap the cluster together")
	fs.StringVar(&c.NodeName, "node-name", host, "unique `name` of this node")
	fs.StringVar(&c.BindAddr, "bind-addr", "127.0.0.1:8946", "`address` of the cluster plane")
	fs.StringVar(&c.AdvertiseAddr, "advertise-addr", "",
		"`address` at which other nodes reach the cluster plane, if it is not --bind-addr")
	fs.StringVar(&c.Encrypt, "encrypt", "", "cluster `key`, the same on all nodes; "+
		"other users can see it in the list of processes, so prefer --encrypt-file")
	fs.StringVar(&c.EncryptFile, "encrypt-file", "", "`file` with the cluster key, the same on all nodes; "+
		"\"belfry keygen\" generates one. By default a node generates its own, "+keyFile+" in --data-dir")
	fs.Func("join", "`address` of another node's cluster plane; may be repeated. "+
		"The node does not start unless one responds", list(&c.Join))
	fs.Func("retry-join", "`address` as in --join, but the node keeps trying; may be repeated", list(&c.RetryJoin))
	fs.BoolVar(&c.Adopt, "adopt", false, "of an agent: follow another cluster that has the same key and its servers' "+
		"addresses, once the own one has been silent for a minute")
	fs.DurationVar(&c.RetryInterval, "retry-interval", time.Second, "`time` between attempts to join")
	fs.IntVar(&c.RetryMax, "retry-max", 0, "`number` of attempts to join before the node gives up; 0: no limit")
	fs.IntVar(&c.RaftMultiplier, "raft-multiplier", 1,
		"`factor` of election timeouts, 1 to 10; use more on slow networks")
	fs.StringVar(&c.HTTPAddr, "http-addr", "127.0.0.1:8080", "`address` of API and page")
	fs.StringVar(&c.HTTPPrefix, "http-prefix", "",
		"`path` of API and page, such as /belfry, for a proxy that serves other things on the same host")
	fs.BoolVar(&c.ACL, "acl", false,
		"require tokens for the API; on all nodes or on none. \"belfry acl bootstrap\" creates the first token")
	fs.BoolVar(&c.Insecure, "insecure", false, "allow the API without access control on an address that others can "+
		"reach: whoever can reach it can run commands here")
	fs.StringVar(&c.DataDir, "data-dir", "belfry.data", "`directory` of the database and of undelivered results")
	fs.IntVar(&c.MetricsJobs, "metrics-jobs", 1_000,
		"`number` of jobs that have metrics of their own, failing ones first")
	fs.StringVar(&c.Statsd.Addr, "statsd-addr", "", "`address` of a statsd server that gets the metrics every 10 s")
	fs.StringVar(&c.Statsd.Dog, "dog-statsd-addr", "", "the same of one that reads DogStatsD")
	fs.Func("dog-statsd-tags", "`name:value` that it gets with them; may be repeated", list(&c.Statsd.Tags))
	fs.StringVar(&c.LogFormat, "log-format", "text", "`format` of the log: text or json")
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "lowest `level` that is logged: debug, info, warn or error")
	fs.Func("tag", "`key=value` by which jobs select this node; may be repeated", pairs(&c.Tags))
	fs.StringVar(&c.Datacenter, "datacenter", "dc1", "`name` of the node's data center, its tag dc")
	fs.StringVar(&c.Region, "region", "global", "`name` of the node's region, its tag region")
	fs.StringVar(&c.Timezone, "timezone", localZone(environ),
		"default time `zone` of jobs; it is fixed when the cluster is created")
	fs.DurationVar(&c.CatchupWindow, "catchup-window", time.Minute, "minimum `age` up to which an overdue tick still "+
		"runs: half of the time to the next tick, if that is longer, up to 1h")
	fs.IntVar(&c.MaxConcurrent, "max-concurrent", 0,
		"`number` of executions that this node runs at once; 0: any number")
	fs.IntVar(&c.ExecutionsKept, "executions-keep", 100, "`number` of finished executions kept of each job")
	fs.IntVar(&c.FailuresKept, "failures-keep", 100,
		"`number` of executions without success of the last 7 days kept of each job beyond those")
	fs.DurationVar(&c.AuditKept, "audit-keep", 365*24*time.Hour, "maximum `age` of rows in the audit trail")
	fs.Int64Var(&c.AuditKeptBytes, "audit-keep-bytes", 256_000_000,
		"maximum `size` of the audit trail, in bytes; beyond it the oldest rows are deleted")
	fs.DurationVar(&c.LostAfter, "lost-after", 5*time.Minute,
		"`time` without contact to its node after which an execution is recorded as lost")
	fs.DurationVar(&c.ShutdownGrace, "shutdown-grace", 10*time.Second,
		"`time` that running executions have to end when the node stops")
	c.TLS.flags(fs, "serve the API with the certificate in this `file`",
		"require clients of the API to have a certificate signed by one in this `file`")
	fs.Func("allowed-host", "`name` by which clients reach the API, besides the node's name and addresses; "+
		"may be repeated", list(&c.AllowedHosts))
	fs.Func("cors-origin", "`origin` such as https://ops.example.com whose pages may use the API; may be repeated",
		list(&c.CORSOrigins))
	fs.Func("executors", "comma-separated `names` of the executors that run here: shell, http; by default both",
		list(&c.Limits.Executors))
	fs.Func("job-env", "comma-separated `names` of the variables of the node's environment that jobs get, "+
		"besides belfry's own; inherit: all, as by default; clean: PATH, HOME and LANG", list(&c.Limits.JobEnv))
	fs.Func("allow-su", "exact `value` of su, user or user:group, that shell jobs may use; may be repeated",
		list(&c.Limits.AllowSu))
	fs.StringVar(&c.Limits.FilesDir, "files-dir", "",
		"`directory` below which the processor files writes outputs; by default files in --data-dir")
	fs.BoolVar(&c.Limits.AllowMetadata, "http-allow-metadata", false,
		"let http jobs reach link-local addresses and the metadata services of clouds, which give away credentials")
	fs.BoolVar(&c.Limits.DenyPrivate, "http-deny-private", false, "keep http jobs from private and loopback "+
		"addresses, after redirects too; behind a proxy only from those in URLs")
	notifyFlags(fs, &c.Notify)
	fs.StringVar(&c.ConfigFile, "config", "", "`file` with flags as \"name: value\", lists, and tags as a map, "+
		"like Dkron's dkron.yml; the environment and flags come before it")
	ignored := func(name string) (string, string, func(string) error) {
		return name, "", func(string) error { c.Ignored = append(c.Ignored, "--"+name); return nil }
	}
	for _, name := range strings.Fields("rpc-port advertise-rpc-port serf-reconnect-timeout profile otel-endpoint") {
		fs.Func(ignored(name))
	}
	for _, name := range strings.Fields("enable-prometheus disable-usage-stats ui") {
		fs.BoolFunc(ignored(name))
	}
	return fs
}

// notifyFlags adds the flags about notices.
func notifyFlags(fs *flag.FlagSet, c *notifyConfig) {
	fs.StringVar(&c.Webhook.URL, "notify-webhook", "",
		"`URL` that is sent a notice of each event in --notify-on, as JSON with a text that chats show")
	fs.Func("notify-on", "comma-separated `events` for --notify-webhook, of "+
		strings.Join(slices.Concat(jobEvents, clusterEvents), ", ")+"; by default all but start, end and leader",
		list(&c.Webhook.On))
	for prefix, h := range map[string]*hook{"": &c.Post, "pre-": &c.Pre} {
		when := map[string]string{"": "end", "pre-": "start"}[prefix]
		fs.StringVar(&h.URL, prefix+"webhook-endpoint", "",
			"`URL` that is sent a request at each "+when+" of an execution")
		fs.Func(prefix+"webhook-headers", "`header` of these requests, as in \"Name: value\"; may be repeated",
			list(&h.Headers))
		fs.StringVar(&h.Payload, prefix+"webhook-payload", "", "`template` of their body, with the values "+
			".Report .JobName .ReportingNode .StartTime .FinishedAt .Success .NodeName .Output")
	}
	fs.StringVar(&c.Cronitor.URL, "cronitor-endpoint", "",
		"`URL` of Cronitor's telemetry, with the key, that is sent each start and end")
	fs.Func("slack-webhook", "`team=URL` to which the processor slack of a job with that team sends; may be repeated",
		pairs(&c.Slack))
	fs.StringVar(&c.Heartbeat.URL, "heartbeat-url", "", "`URL` that the leader calls each minute while it schedules")
	m := &c.Mail
	fs.StringVar(&m.Host, "mail-host", "", "`host` of the mail server; the owner_email of a job that failed, "+
		"recovered, missed ticks or is overdue gets mail")
	fs.UintVar(&m.Port, "mail-port", 25,
		"`port` of --mail-host; 465 has TLS from the start, on others it begins with STARTTLS if offered")
	fs.StringVar(&m.Username, "mail-username", "", "`name` at the mail server; none: without a login")
	fs.StringVar(&m.Password, "mail-password", "", "`password` of --mail-username; prefer BELFRY_MAIL_PASSWORD")
	fs.StringVar(&m.From, "mail-from", "", "`address` of the sender")
	fs.Func("mail-domains", "comma-separated `domains` to which mail goes; by default that of --mail-from",
		list(&m.Domains))
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
	given := given(fs)
	for _, set := range settings {
		name := strings.ToLower(set.name)
		if name == "tags" {
			name = "tag"
		}
		switch {
		case err != nil:
		case fs.Lookup(name) == nil:
			var names []string
			fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
			closer := func(a, b string) int { return editDistance(a, name) - editDistance(b, name) }
			err = fmt.Errorf("line %d: there is no setting %q; the nearest is %q", set.line, set.name,
				slices.MinFunc(names, closer))
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

var (
	// pairPattern is a line "name: value", of which the value may be missing.
	pairPattern = regexp.MustCompile(`^["']?([^\s:"']+)["']?:(?:\s+([^#].*))?(?:\s+#.*)?$`)

	// scalarPattern is a value in double quotes, in single ones or in none, with a comment or without.
	scalarPattern = regexp.MustCompile(`^(?:(?:("(?:[^"\\]|\\.)*")|'((?:[^']|'')*)')\s*(?:#.*)?|` +
		"([^]\\[{}&*!|>%@`,?~\"'#].*?)" + `(?:\s+#.*|\s*))$`)
)

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
		default:
			if name = ""; pair[2] == "" {
				name = pair[1]
			}
			values := pair[2:]
			if pair[2] != "" && pair[2][0] == '[' && strings.HasSuffix(pair[2], "]") {
				values = strings.Split(pair[2][1:len(pair[2])-1], ",")
			}
			for _, value := range values {
				if value = strings.TrimSpace(value); value != "" {
					add(pair[1], "", value)
				}
			}
			seen[pair[1]] = true
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return list, nil
}

// scalar reads a value, in quotes or not, and drops a comment after it.
func scalar(text string) (string, error) {
	m := scalarPattern.FindStringSubmatch(text)
	switch {
	case m == nil || strings.Contains(m[3]+" ", ": "):
	case m[3] != "":
		return m[3], nil
	case m[1] == "":
		return strings.ReplaceAll(m[2], "''", "'"), nil
	default:
		if value, err := strconv.Unquote(m[1]); err == nil {
			return value, nil
		}
	}
	return "", fmt.Errorf("%q is no single value; write it in quotes", text)
}

// list returns the function for a flag that may be repeated. A value may also be a comma-separated list, which is the
// only way in an environment variable.
func list(values *[]string) func(string) error {
	return func(text string) error {
		for v := range strings.SplitSeq(text, ",") {
			if v = strings.TrimSpace(v); v != "" {
				*values = append(*values, v)
			}
		}
		return nil
	}
}

// pairs returns the function for a list of which each value is key=value.
func pairs(m *map[string]string) func(string) error {
	return func(text string) error {
		var entries []string
		list(&entries)(text) // never fails
		for _, entry := range entries {
			k, v, ok := strings.Cut(entry, "=")
			if !ok || k == "" {
				return errors.New("write it as key=value")
			}
			if *m == nil {
				*m = map[string]string{}
			}
			(*m)[k] = v
		}
		return nil
	}
}

// fromEnvironment sets flags that were not given from their environment variables.
func fromEnvironment(fs *flag.FlagSet, environ []string) (err error) {
	given, vars := given(fs), variables(environ)
	fs.VisitAll(func(f *flag.Flag) {
		v, ok := vars[f.Name]
		if !ok || given[f.Name] || err != nil || f.Name == "job" { // a job's command finds its own name in BELFRY_JOB
			return
		}
		if e := fs.Set(f.Name, v.value); e != nil {
			err = fmt.Errorf("%s: invalid value %q: %w", v.key, v.value, e)
		}
	})
	return err
}

// given returns the names of the flags that have been set.
func given(fs *flag.FlagSet) map[string]bool {
	names := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { names[f.Name] = true })
	return names
}

// A variable is an environment variable for a flag.
type variable struct{ key, value string }

// variables returns the environment variables with our prefixes by the names of their flags. BELFRY_ takes precedence
// over DKRON_, and the last of several with one name wins.
func variables(environ []string) map[string]variable {
	vars := map[string]variable{}
	for _, prefix := range []string{"DKRON_", "BELFRY_"} {
		for _, kv := range environ {
			key, value, _ := strings.Cut(kv, "=")
			switch name, ok := strings.CutPrefix(key, prefix); {
			case ok && name == strings.ToUpper(name):
				vars[strings.ToLower(strings.ReplaceAll(name, "_", "-"))] = variable{key, value}
			case ok:
				vars[key] = variable{key, value} // of no flag
			}
		}
	}
	return vars
}

// unused returns the environment variables that have our prefixes but match no flag. Those of tokens are for the remote
// commands, which may share the environment.
func unused(fs *flag.FlagSet, environ []string) (list []string) {
	for name, v := range variables(environ) {
		if fs.Lookup(name) == nil && name != "token" && name != "token-file" {
			list = append(list, v.key)
		}
	}
	slices.Sort(list)
	return list
}

// validate returns an error that names the wrong flag and the remedy.
func (c *config) validate() (err error) {
	refuse := func(wrong bool, format string, args ...any) {
		if wrong && err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	refuse(c.MetricsJobs < 0 || c.MetricsJobs > metricsJobsMax,
		"--metrics-jobs: must be between 0 and %d", metricsJobsMax)
	for flag, addr := range map[string]string{"statsd-addr": c.Statsd.Addr, "dog-statsd-addr": c.Statsd.Dog} {
		_, _, e := net.SplitHostPort(addr)
		refuse(addr != "" && e != nil, "--%s: %q must be a host and a port, such as 127.0.0.1:8125", flag, addr)
	}
	refuse(c.LogFormat != "text" && c.LogFormat != "json", "--log-format: %q must be text or json", c.LogFormat)
	refuse(c.BootstrapExpect < 0 || c.BootstrapExpect > 0 && !c.Server,
		"--bootstrap-expect: is the number of servers that bootstrap a cluster, and needs --server")
	refuse(!c.Server && len(c.Join)+len(c.RetryJoin) == 0,
		"--retry-join: a node without --server must know a server; name the address of its cluster plane")
	refuse(c.Adopt && c.Server,
		"--adopt: is for agents; a server belongs to one cluster for as long as it has its --data-dir")
	refuse(c.MaxConcurrent < 0, "--max-concurrent: must be a number of executions, or 0 for any number")
	v, reserved := c.Tags[tagMaxConcurrent]
	refuse(reserved, "--tag %s=%s: this tag is reserved for --max-concurrent; use that, or another name",
		tagMaxConcurrent, v)
	v, reserved = c.Tags["server"]
	refuse(reserved && v != strconv.FormatBool(c.Server),
		"--tag server=%s: this tag is reserved for whether the node has --server; use another name", v)
	refuse(c.NodeName == "" || len(c.NodeName) > memberNameMax, "--node-name: must have 1 to %d bytes", memberNameMax)
	address := func(flag string, addrs ...string) {
		for _, addr := range addrs {
			refuse(strings.HasPrefix(addr, "provider=") || strings.Contains(addr, "{{"),
				"%s: %q is not looked up here; write an address, such as 10.0.0.1:8946", flag, addr)
			_, _, e := net.SplitHostPort(addr)
			refuse(e != nil, "%s: %q must be host:port", flag, addr)
		}
	}
	address("--bind-addr", c.BindAddr)
	address("--advertise-addr", cmp.Or(c.AdvertiseAddr, c.BindAddr))
	address("--http-addr", c.HTTPAddr)
	address("--join", c.Join...)
	address("--retry-join", c.RetryJoin...)
	_, e := c.key()
	refuse(e != nil, "--encrypt: %w", e)
	refuse(c.RetryInterval <= 0 || c.RetryMax < 0,
		"--retry-interval, --retry-max: the first must be more than 0, the second at least 0")
	refuse(c.RaftMultiplier < 1 || c.RaftMultiplier > 10, "--raft-multiplier: must be between 1 and 10")
	refuse(!c.ACL && !c.Insecure && !isLoopback(c.HTTPAddr), "--http-addr %s: others could run commands here; require "+
		"tokens with --acl, use a loopback address such as 127.0.0.1:8080, or allow it with --insecure", c.HTTPAddr)
	refuse((c.TLS.Cert == "") != (c.TLS.Key == "") || c.TLS.CA != "" && c.TLS.Cert == "",
		"--tls-cert, --tls-key: belong together, and --tls-ca needs both")
	p := c.HTTPPrefix
	refuse(p != "" && (p[0] != '/' || p == "/" || path.Clean(p) != p || (&url.URL{Path: p}).String() != p),
		"--http-prefix: %q must be a path such as /belfry, of letters and digits, without a trailing slash", p)
	for _, origin := range c.CORSOrigins {
		e := new(http.CrossOriginProtection).AddTrustedOrigin(origin)
		refuse(e != nil || origin != strings.ToLower(origin),
			"--cors-origin: %q must be a scheme and host in lower case, such as https://ops.example.com", origin)
	}
	for _, name := range c.Limits.Executors {
		refuse(name != executorShell && name != executorHTTP,
			"--executors: there is no executor %q; name %s, %s, or both", name, executorShell, executorHTTP)
	}
	for _, name := range c.Limits.JobEnv {
		refuse((name == jobEnvInherit || name == jobEnvClean) && len(c.Limits.JobEnv) > 1,
			"--job-env: %s stands for all names; give it alone", name)
		refuse(strings.Contains(name, "=") || strings.HasPrefix(name, "BELFRY_") || strings.HasPrefix(name, "DKRON_"),
			"--job-env: %q is no name of a variable that jobs may get; those of the node's own settings are kept "+
				"from them", name)
	}
	_, e = loadZone(c.Timezone)
	refuse(e != nil, "--timezone: %w", e)
	refuse(c.CatchupWindow < catchupMin || c.CatchupWindow > catchupWindowMax,
		"--catchup-window: must be at least %s and at most %s", catchupMin, catchupWindowMax)
	refuse(c.ExecutionsKept < 1 || c.FailuresKept < 0,
		"--executions-keep, --failures-keep: the first must be at least 1, the second at least 0")
	refuse(c.AuditKept < 0, "--audit-keep: must not be negative")
	refuse(c.AuditKeptBytes < 1_000_000, "--audit-keep-bytes: must be at least 1000000")
	refuse(c.LostAfter < 2*nodeFailed, "--lost-after: must be at least %s", 2*nodeFailed)
	refuse(c.ShutdownGrace < 0, "--shutdown-grace: must not be negative")
	refuse(c.Notify.Mail.Port < 1 || c.Notify.Mail.Port > math.MaxUint16, "--mail-port: must be between 1 and 65535")
	c.Notify.Page = c.page()
	return cmp.Or(err, c.Notify.validate())
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
// there is no plane without a key, and who cannot read the file is a stranger to it. The caller has locked the
// directory.
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
	const system = "/etc/localtime"
	name := system
	for _, kv := range environ {
		if zone, ok := strings.CutPrefix(kv, "TZ="); ok {
			name = cmp.Or(strings.TrimPrefix(zone, ":"), system)
		}
	}
	if !filepath.IsAbs(name) {
		return name
	}
	target, _ := filepath.EvalSymlinks(name)
	for _, file := range []string{name, target} {
		_, zone, _ := strings.Cut(file, "/zoneinfo/") // of the system's time zone database
		if _, err := loadZone(zone); zone != "" && err == nil {
			return zone
		}
	}
	if name != system {
		return name // parseConfig reports that it is not a zone
	}
	return "UTC"
}

// tags returns the tags of the node: the operator's and those of every Dkron node. The plane adds those with addresses.
func (c *config) tags() map[string]string {
	tags := map[string]string{
		"role": "dkron", "dc": c.Datacenter, "region": c.Region, "version": version,
		"server": strconv.FormatBool(c.Server), "expect": strconv.Itoa(c.BootstrapExpect),
	}
	if c.MaxConcurrent > 0 {
		tags[tagMaxConcurrent] = strconv.Itoa(c.MaxConcurrent)
	}
	maps.Copy(tags, c.Tags)
	return tags
}

// plane returns the configuration of the cluster plane. Without --retry-join, the node tries to join only once.
func (c *config) plane(id string, incarnation uint64) planeConfig {
	key, _ := c.key() // validated
	p := planeConfig{
		record: record{
			Name: c.NodeName, ID: id, Incarnation: incarnation, Server: c.Server, Addr: c.AdvertiseAddr,
			HTTPAddr: c.HTTPAddr, Tags: c.tags(), Expect: c.BootstrapExpect,
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
	cfg.warn(log)
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
		config, reload, err := cfg.TLS.server()
		if err != nil {
			return err
		}
		hangup = func() {
			if err := reload(); err != nil {
				log.Error("the API keeps its former certificate", "err", err)
				return
			}
			log.Info("the API has reloaded its certificate")
		}
		listener = tls.NewListener(listener, config)
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

// warn guards the process, and logs which settings have no effect or are dangerous.
func (c *config) warn(log *slog.Logger) {
	if err := guardProcess(); err != nil {
		log.Warn("the jobs of this node can read its memory and environment, and so its secrets", "err", err)
	}
	if c.Ignored != nil {
		log.Warn("these flags of Dkron have no effect here", "flags", strings.Join(c.Ignored, " "))
	}
	for _, file := range []string{"dkron.yml", "config/dkron.yml", "/etc/dkron/dkron.yml"} {
		if _, err := os.Stat(file); err == nil && c.ConfigFile == "" {
			log.Warn("this file has no effect unless --config names it", "file", file)
		}
	}
	for _, name := range c.Unused {
		log.Warn("this environment variable matches no flag and has no effect", "variable", name)
	}
	if info, err := os.Stat(c.keyFile); err == nil && info.Mode().IsRegular() && info.Mode()&0o004 != 0 {
		log.Warn("other users can read the cluster key, which allows to run commands on every node; chmod 600 the file",
			"file", c.keyFile)
	}
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
	pem, err := readNamed("--tls-ca", f.CA)
	if err != nil {
		return nil, nil, err
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(pem)) {
		return nil, nil, fmt.Errorf("--tls-ca: %s holds no certificate; it must have them as PEM", f.CA)
	}
	return certs, roots, nil
}

// server returns the API's TLS configuration, and a function that reads the files again. After an error of reload the
// previous configuration stays in use.
func (f *tlsFiles) server() (config *tls.Config, reload func() error, err error) {
	var current atomic.Pointer[tls.Config] // for new connections
	reload = func() error {
		certs, roots, err := f.load()
		if err != nil {
			return err
		}
		c := &tls.Config{Certificates: certs, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		if roots != nil {
			c.ClientCAs, c.ClientAuth = roots, tls.RequireAndVerifyClientCert
		}
		current.Store(c)
		return nil
	}
	get := func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil }
	return &tls.Config{GetConfigForClient: get}, reload, reload()
}

// parts are the parts of a node.
type parts struct {
	exec  *executor
	plane *plane
	sched *scheduler // nil on an agent
	clu   *cluster   // nil on an agent
	api   *api
	front http.Handler // API and page
}

// newParts creates the parts that every node has, and listens on the cluster plane. ctx ends with the node, and quit
// ends it. a is nil on a server.
func newParts(ctx context.Context, quit func(), cfg config, id string, a *agentDir, log *slog.Logger) (*parts, error) {
	n := &parts{}
	ec := executorConfig{Node: cfg.NodeName, NodeID: id, DataDir: cfg.DataDir, Log: log, Limits: cfg.Limits,
		Shell: cfg.host.shell, Chance: cfg.host.chance}
	if a != nil { // a server hears of all nodes' failures
		ec.Failures = &failureLog{log: log}
	}
	var err error
	if n.exec, err = newExecutor(ec); err != nil {
		return nil, err
	}
	pc := cfg.plane(id, n.exec.inc)
	if a != nil {
		pc.Agent, pc.Cluster = a, a.Cluster
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
	n.api = &api{
		node: cfg.NodeName, hosts: append(cfg.AllowedHosts, cfg.NodeName), origins: cfg.CORSOrigins, acl: cfg.ACL,
		plane: n.plane, quit: quit, stopping: ctx.Done(), log: log,
	}
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
	none := func() {}
	stopPlane, stopDriver, stopSecret, stopStatsd := spawn(&g, fail, n.plane.run), none, none, none
	if n.clu != nil {
		stopDriver = spawn(&g, fail, n.clu.run)
		stopSecret = spawn(&g, fail, func(ctx context.Context) error {
			return dropBootstrap(ctx, cfg.DataDir, n.clu.store, log)
		})
		stopStatsd = spawn(&g, fail, func(ctx context.Context) error {
			for cfg.Statsd.Addr+cfg.Statsd.Dog != "" && pause(ctx, statsdPause) == nil {
				if text, err := n.api.metricsText(nil); err == nil {
					cfg.Statsd.report(text)
				}
			}
			return nil
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
	stopStatsd()
	stopWeb()
	// 2. Start no more executions, here or elsewhere.
	n.plane.leaving()
	stopHandOver := none
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
	patience, cancel := context.WithTimeout(context.Background(), deliverPatience)
	defer cancel()
	for _, left := n.exec.counts(); left > 0 && pause(patience, deliverPause) == nil; _, left = n.exec.counts() {
	}
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
	n, err := newParts(ctx, quit, cfg, own.ID, nil, log)
	if err != nil {
		return err
	}
	defer n.plane.listener.Close()
	if n.clu, err = newCluster(n.plane, st, time.Duration(cfg.RaftMultiplier)*tickTime, sched); err != nil {
		return err
	}
	if cfg.host.chance != nil {
		sched.chance = cfg.host.chance
	}
	n.sched, sched.cluster = sched, n.clu
	n.api.store, n.api.scheduler, n.api.dir, n.api.metricsJobs = st, sched, cfg.DataDir, cfg.MetricsJobs
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
	n, err := newParts(ctx, quit, cfg, dir.ID, dir, log)
	if err != nil {
		return err
	}
	defer n.plane.listener.Close()
	n.front = n.api.relayHandler()
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
		{"keygen", "", "print a random cluster key for --encrypt-file", "keygen > cluster.key", local, prints(newKey)},
		{"recover", "", "make a new cluster of one server, if the majority of the old one is lost for good",
			"recover --yes-i-lost-a-majority --data-dir=belfry.data", local, setupRecover},
		{"version", "", "print the version", "version", local, prints(versionLine)},
		{"help", "", "print this text, or with words of a command what it does", "help run", local, prints(helpText)},

		{"jobs", "", "list jobs", "jobs --status=failed --metadata=team=web", shows, setupJobs},
		{"job", "NAME", "show a job", "job backup", shows, plain(showJob)},
		{"run", "NAME", "run a job now", "run backup -f", remote, setupRun},
		{"logs", "NAME|EXECUTION", "print an output, of a job that of its newest execution", "logs backup -f", remote,
			setupLogs},
		{"why", "NAME", "say what became of the ticks of a job", "why backup --at=2026-11-24T03:00:00Z", shows,
			setupWhy},
		{"kill", "NAME|EXECUTION", "end an execution, or all of a job", "kill backup", remote, plain(killRuns)},
		{"enable", "NAME", "let the schedule of a job fire", "enable backup", remote, setDisabled("false")},
		{"disable", "NAME", "keep the schedule of a job from firing", "disable backup", remote, setDisabled("true")},
		{"delete", "NAME", "delete a job", "delete backup", remote, call("DELETE /v1/jobs/", "", "%s is deleted")},
		{"executions", "", "list what ran", "executions --failed --since=12h", shows, setupExecutions},
		{"rerun", "", "run the jobs again whose last run failed, or whose last tick was missed",
			"rerun --failed --since=12h --dry-run", remote, setupRerun},
		{"preview", "", "list what will run", "preview --from=2027-03-28T00:00:00Z --to=2027-03-29T00:00:00Z", shows,
			setupPreview},

		{"apply", "", "make the jobs what a file says, all or none, after showing what that changes",
			"apply -f jobs/ --prune --metadata=team=web --dry-run", remote, setupApply},
		{"export", "", "print the jobs as apply takes them", "export --metadata=team=web > jobs.json", remote,
			setupExport},
		{"import crontab", "FILE|- ...",
			"print the lines of crontabs as jobs for apply, and report what cannot be as it was",
			"import crontab /etc/crontab /etc/cron.d/* --system --tag=role=cron > jobs.json", local, setupImportCron},
		{"import dkron", "URL|FILE|-",
			"print the jobs of a Dkron, or of a file from its API, for apply, and report what cannot run here",
			"import dkron http://10.0.0.1:8080 --disabled > jobs.json", local, setupImportDkron},

		{"hold", "WHY", "keep jobs from starting until they are released", "hold 'a new switch' --metadata=team=web",
			remote, setHold("hold")},
		{"release", "", "end the hold of the same metadata", "release --metadata=team=web", remote, setHold("release")},
		{"drain", "NODE", "let nothing start on a node, and wait until nothing runs there", "drain web1", remote,
			setupDrain},

		{"members", "", "list the nodes", "members", shows, plain(showMembers)},
		{"health", "", "say whether reads and writes work through the node; exit status 1 if not", "health", remote,
			call("GET /health", "", "")},
		{"leave", "", "take the node out of its cluster and stop it", "leave", remote, plain(leave)},
		{"raft list-peers", "", "list the servers: leader, voters, status", "raft list-peers", shows, plain(listPeers)},
		{"raft remove-peer", "", "remove a server that is lost for good from the voters",
			"raft remove-peer --peer-id=b", remote, setupRemovePeer},
		{"acl bootstrap", "", "create the first management token, on the server's machine", "acl bootstrap", remote,
			setupBootstrap},
		{"acl policy apply", "", "create or replace a policy", "acl policy apply --name=a --rules-file=a.json", remote,
			setupApplyPolicy},
		{"acl policy list", "", "list the policies", "acl policy list", remote, call("GET /v1/acl/policies", "", "")},
		{"acl policy info", "[NAME]", "show a policy", "acl policy info a", remote,
			call("GET /v1/acl/policies/", "name", "")},
		{"acl policy delete", "[NAME]", "delete a policy", "acl policy delete a", remote,
			call("DELETE /v1/acl/policies/", "name", "")},
		{"acl token create", "", "create a token", "acl token create --name=wall --policy=viewer", remote,
			setupCreateToken},
		{"acl token list", "", "list the tokens", "acl token list", remote, call("GET /v1/acl/tokens", "", "")},
		{"acl token info", "[ACCESSOR]", "show a token", "acl token info 3f", remote,
			call("GET /v1/acl/tokens/", "accessor-id", "")},
		{"acl token delete", "[ACCESSOR]", "delete a token", "acl token delete 3f", remote,
			call("DELETE /v1/acl/tokens/", "accessor-id", "")},
	}
}

// synopsis returns the command with its arguments.
func (c subcommand) synopsis() string { return strings.TrimSpace(c.name + " " + c.args) }

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
	most := len(strings.Fields(strings.TrimSuffix(c.args, "...")))
	least := most - strings.Count(c.args, "[")
	if strings.HasSuffix(c.args, "...") {
		most = math.MaxInt
	}
	if s.args, err = parseFlags(fs, args, s.environ, s.stdout, least, most); err == nil && s.tokenFile != "" {
		s.token, err = readNamed("--token-file", s.tokenFile)
	}
	if err != nil {
		return statusError{err, exitUsage}
	}
	if strings.HasPrefix(c.args, "NAME") {
		s.none = fmt.Sprintf(`there is no %q; "belfry jobs" lists the jobs, "belfry executions" the executions`,
			s.args[0])
	}
	return execute()
}

// need returns an error unless the flag was given.
func need(flag, value, hint string) error {
	if value == "" {
		return usage("%s: is required%s", flag, hint)
	}
	return nil
}

// readNamed reads the file that a flag names, without space around the text.
func readNamed(flag, file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// say prints a line.
func (s *invocation) say(format string, args ...any) error {
	_, err := fmt.Fprintf(s.stdout, format+"\n", args...)
	return err
}

// plain returns the setup of a command without flags of its own.
func plain(execute func(*invocation) error) func(*flag.FlagSet, *invocation) func() error {
	return func(_ *flag.FlagSet, s *invocation) func() error { return func() error { return execute(s) } }
}

// prints returns the setup of a command that prints text.
func prints(text func() string) func(*flag.FlagSet, *invocation) func() error {
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
	b.WriteString("\nThese act on the node at --http-addr or BELFRY_HTTP_ADDR, by default 127.0.0.1:8080. With " +
		"access\ncontrol they need a token: BELFRY_TOKEN, --token-file or --token.\n\n")
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
	none      string // what a 404 means; "": that there is no API
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

// toSameNode follows redirects on the same node only, because the client would send the token to any other address.
func toSameNode(r *http.Request, via []*http.Request) error {
	if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme || len(via) > redirectsMax {
		return fmt.Errorf("%w: %s", errElsewhere, r.URL.Redacted())
	}
	return nil
}

var (
	errElsewhere = errors.New("it redirects to another address, which would get the token; " +
		"use that one if you trust it")
	errNodeRefused = errors.New("the node responded with 409 Conflict")
	errNoAPI       = errors.New("there is no belfry API below that address; see --http-prefix")
)

// noneThere is the error for a 404, in the words of the command.
type noneThere string

func (e noneThere) Error() string { return string(e) }

// ask sends a request and returns the body of the response. It sends doc as JSON; nil is no body.
func (s *invocation) ask(method, path string, doc any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, remoteTimeout)
	defer cancel()
	var sent io.Reader
	if doc != nil {
		text, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(text)
	}
	resp, err := s.send(ctx, method, path, "application/json", sent)
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
func (n *remoteNode) send(ctx context.Context, method, path, kind string, body io.Reader) (*http.Response, error) {
	client, base, err := n.client()
	if err != nil {
		return nil, err
	}
	failed := func(format string, args ...any) (*http.Response, error) {
		return nil, fmt.Errorf("--http-addr %s: "+format, append([]any{n.addr}, args...)...)
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return failed("%w", err)
	}
	r.Header.Set("Content-Type", kind)
	if n.token != "" {
		r.Header.Set("X-Dkron-Token", n.token)
	}
	resp, err := client.Do(r)
	if err != nil {
		if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return failed("the node's certificate is not trusted; name its CA with --tls-ca, "+
				"and use an address that is in the certificate: %w", e.Err)
		}
		err = err.(*url.Error).Err // as Do documents
		if errors.Is(err, errElsewhere) {
			return failed("%w", err)
		}
		return failed("no node responds there: %w", err)
	}
	ours := resp.Header.Get("X-Whom") != ""
	if ours && resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, jobBytesMax))
	switch {
	case err != nil:
		return nil, err
	case bytes.Contains(text, []byte("HTTP request to an HTTPS server")): // as net/http says it
		return failed("the node speaks TLS; use https:// before the address, or --tls-ca")
	case resp.StatusCode == http.StatusNotFound && ours && n.none != "":
		return nil, noneThere(n.none)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode != http.StatusMisdirectedRequest && !ours:
		return failed("%w", errNoAPI)
	case resp.StatusCode == http.StatusConflict:
		reason := strings.ReplaceAll(string(bytes.TrimSpace(text)), "?force", "--force") // as the command has it
		return nil, fmt.Errorf("%w: %s", errNodeRefused, reason)
	}
	return nil, fmt.Errorf("the node responded with %s: %s", resp.Status, bytes.TrimSpace(text))
}

// fetch gets a document from the API.
func fetch[T any](s *invocation, path string) (doc T, err error) {
	body, err := s.ask(http.MethodGet, path, nil)
	if err == nil {
		err = decode(body, &doc)
	}
	return doc, err
}

// runsOf gets the executions of a job, newest first, without their outputs.
func (s *invocation) runsOf(job string) ([]executionView, error) {
	return fetch[[]executionView](s, jobPath(job)+"/executions?output_size_limit=0")
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
	body, err := s.ask(http.MethodGet, path, nil)
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
	rows := [][]string{strings.Fields(header)}
	for _, v := range list {
		cells := row(v)
		for i, cell := range cells {
			cells[i] = cmp.Or(printable(cell), "-")
		}
		rows = append(rows, cells)
	}
	return printRows(s.stdout, rows)
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

// sinceFlag adds --since, a time until now.
func sinceFlag(fs *flag.FlagSet, since time.Duration, help string) *time.Duration {
	fs.Func("since", help, func(text string) (err error) {
		if days, err := strconv.Atoi(strings.TrimSuffix(text, "d")); err == nil && strings.HasSuffix(text, "d") {
			text = strconv.Itoa(24*days) + "h"
		}
		if since, err = time.ParseDuration(text); err != nil || since <= 0 {
			return errors.New("write it as 30m, 12h or 7d")
		}
		return nil
	})
	return &since
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
	for name, help := range map[string]string{
		"q": "part of a `name`", "status": "only this `status`: " + statuses, "executor": "only of this `executor`",
	} {
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

func showJob(s *invocation) error {
	body, err := s.ask(http.MethodGet, s.jobPathOf(), nil)
	if err != nil || s.json {
		return s.printJSON(body, err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.Token() // the object's begin
	var rows [][]string
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
			rows = append(rows, []string{fmt.Sprint(field), printable(text)})
		}
	}
	return printRows(s.stdout, rows)
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
			return err
		}
		resp.Body.Close()
		switch group, err := strconv.ParseInt(resp.Header.Get("Belfry-Group"), 10, 64); {
		case err == nil && *follow:
			return s.follow(group)
		case err == nil:
			return s.say("%s runs as group %d", s.args[0], group)
		}
		text := fmt.Sprintf("%[1]s waits until it may start; \"belfry logs %[1]s -f\" follows it then", s.args[0])
		if *follow { // but its group is not known yet
			return errors.New(text)
		}
		return s.say("%s", text)
	}
}

const followPause = 200 * time.Millisecond // between looks at a run that is followed

// follow prints the outputs of a run until it has ended, retries too. The error says how, unless it has succeeded.
func (s *invocation) follow(group int64) error {
	j, err := fetch[listedJob](s, s.jobPathOf())
	if err != nil {
		return err
	}
	shown := map[string]bool{}
	for {
		list, err := s.runsOf(j.Name)
		if err != nil {
			return err
		}
		over, last := true, map[string]executionView{} // by node
		for _, e := range slices.Backward(list) {
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
		var failed error
		for _, e := range last {
			if e.FinishedAt.Year() <= 1 || retried(e.Outcome) && e.Attempt <= int(j.Retries) {
				over = false
			}
			if !e.Success {
				status := exitError
				if e.ExitCode != nil && *e.ExitCode > 0 {
					status = *e.ExitCode
				}
				failed = statusError{fmt.Errorf("%s %s on %s: %s", s.args[0], e.Outcome, e.NodeName, e.Reason), status}
			}
		}
		if over && len(last) > 0 {
			return failed
		}
		if err := pause(s.ctx, followPause); err != nil {
			return err
		}
	}
}

// path returns the path of an execution.
func (e executionView) path() string {
	return jobPath(e.JobName) + "/executions/" + url.PathEscape(e.ID)
}

// output copies the output of an execution.
func (s *invocation) output(e executionView, follow bool) error {
	path := e.path() + "/output"
	if follow {
		path += "?follow"
	}
	resp, err := s.send(s.ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(s.stdout, resp.Body); err != nil {
		return fmt.Errorf("the output of %s broke off: %w", e.ID, err)
	}
	return nil
}

// named returns the executions that NAME|EXECUTION means: those of the job, newest first, or the one.
func (s *invocation) named() ([]executionView, error) {
	list, err := s.runsOf(s.args[0])
	if !errors.Is(err, noneThere(s.none)) {
		return list, err
	}
	e, err := fetch[executionView](s, "/v1/executions/"+url.PathEscape(s.args[0]))
	return []executionView{e}, err
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
		if _, err := s.ask(http.MethodPost, e.path()+"/kill", nil); err != nil {
			return fmt.Errorf("%s: %w", e.ID, err)
		}
		s.say("%s of %s is being ended", e.ID, e.JobName)
	}
	return nil
}

// setHold returns the setup of hold and release.
func setHold(verb string) func(*flag.FlagSet, *invocation) func() error {
	return func(fs *flag.FlagSet, s *invocation) func() error {
		s.none = "there is no such hold; the page shows those that there are"
		var held rule
		fs.Func("metadata", "`key=value` that the jobs have; may be repeated. Without it all jobs are meant",
			pairs(&held.Metadata))
		return func() error {
			held.Why = strings.Join(s.args, "")
			if _, err := s.ask(http.MethodPost, "/v1/"+verb, held); err != nil {
				return err
			}
			jobs, with := "all jobs", " with "
			for _, k := range sortedKeys(held.Metadata) {
				jobs, with = jobs+with+k+"="+held.Metadata[k], " and "
			}
			if verb == "release" {
				return s.say("%s are released", jobs)
			}
			return s.say("%s are held until they are released: %s", jobs, held.Why)
		}
	}
}

func setupDrain(fs *flag.FlagSet, s *invocation) func() error {
	s.none = "there is no such node, or it is not drained; \"belfry members\" lists the nodes"
	undo := fs.Bool("undo", false, "let runs start on it again")
	return func() error {
		path, done := "/drain?wait=30s", "nothing runs on %s, and nothing starts there"
		if *undo {
			path, done = "/undrain", "runs may start on %s"
		}
		for {
			resp, err := s.send(s.ctx, http.MethodPost, "/v1/members/"+url.PathEscape(s.args[0])+path, "", nil)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return s.say(done, s.args[0])
			}
		}
	}
}

// setDisabled returns the setup of enable and disable.
func setDisabled(to string) func(*flag.FlagSet, *invocation) func() error {
	return plain(func(s *invocation) error {
		var j listedJob
		body, err := s.ask(http.MethodPost, s.jobPathOf()+"/toggle?disabled="+to, nil)
		if err == nil {
			err = decode(body, &j)
		}
		switch {
		case err != nil:
			return err
		case j.Disabled:
			return s.say("%s is disabled", j.Name)
		}
		return s.say("%s is enabled, next run: %s", j.Name, cmp.Or(j.fires(), "none"))
	})
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
		q := sinceQuery(from)
		q.Set("end", to.Format(time.RFC3339Nano))
		q.Set("_end", strconv.Itoa(whyTicksMax))
		body, err := s.ask(http.MethodGet, s.jobPathOf()+"/ticks?"+q.Encode(), nil)
		if err != nil || s.json {
			return s.printJSON(body, err)
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
		runs, err := s.runsOf(j.Name)
		if err != nil {
			return err
		}
		s.say("%s: next run: %s.", j.Name, cmp.Or(j.fires(), "none"))
		for _, t := range ledger.Ticks {
			s.say("%s", printable(t.sentence(runs)))
		}
		for _, d := range ledger.Days {
			s.say("%s: of its ticks %d ran, %d ran late, %d were skipped, %d were missed.",
				d.Date.Format(time.DateOnly), d.Ran, d.Late, d.Skipped, d.Missed)
		}
		if ledger.Due == 0 {
			s.say("It had no tick from %s to %s.", localTime(from), localTime(to))
		}
		return nil
	}
}

// sentence says what became of a tick. runs are executions of the job.
func (t tickView) sentence(runs []executionView) string {
	text := localTime(t.Due)
	if t.Until != nil {
		text += fmt.Sprintf(" to %s, %d ticks", localTime(*t.Until), t.Count)
	}
	text += ": " + map[string]string{outcomeRan: "ran", outcomeLate: "ran late", outcomeSkipped: "did not run, skipped",
		outcomeMissed: "did not run, missed"}[t.Outcome]
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
	since := sinceFlag(fs, time.Hour, "only those of this `time` until now, such as 30m, 12h or 7d; by default 1h")
	return func() error {
		q := sinceQuery(time.Now().Add(-*since))
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

// sinceQuery selects what was from a time on.
func sinceQuery(from time.Time) url.Values {
	return url.Values{"start": {from.Format(time.RFC3339Nano)}}
}

func setupRerun(fs *flag.FlagSet, s *invocation) func() error {
	failed := fs.Bool("failed", false, "the jobs whose last run failed")
	missed := fs.Bool("missed", false, "the jobs whose last tick did not run, and that have not run since")
	since := sinceFlag(fs, 0, "failures and ticks of this `time` until now, such as 30m, 12h or 7d; required")
	dry := fs.Bool("dry-run", false, "only list the jobs")
	s.none = "there is no such job"
	return func() error {
		if *failed == *missed || *since <= 0 {
			return usage("--failed, --missed: one of them is required, and --since")
		}
		needed := s.lastTickMissed
		if *failed {
			needed = s.lastRunFailed
		}
		jobs, err := fetch[[]listedJob](s, "/v1/jobs")
		if err != nil {
			return err
		}
		from := time.Now().Add(-*since)
		var refused error
		for _, j := range jobs {
			wanted, err := needed(j, from)
			if wanted && err == nil && !*dry {
				_, err = s.ask(http.MethodPost, jobPath(j.Name)+"/run", nil)
			}
			switch {
			case errors.Is(err, noneThere(s.none)): // deleted meanwhile
			case errors.Is(err, errNodeRefused):
				refused = errors.Join(refused, fmt.Errorf("%s: %w", j.Name, err))
			case err != nil:
				return fmt.Errorf("%s: %w; the jobs above run again", j.Name, err)
			case wanted:
				s.say("%s", j.Name)
			}
		}
		return refused
	}
}

// lastRunFailed reports whether the last run of a job failed, and that not before from.
func (s *invocation) lastRunFailed(j listedJob, from time.Time) (bool, error) {
	if j.Status != statusFailed && j.Status != statusPartial || timeOf(int64(j.LastError)).Before(from) {
		return false, nil
	}
	runs, err := s.runsOf(j.Name)
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

// lastTickMissed reports whether the last tick of a job from a time on did not run, and nothing has run since.
func (s *invocation) lastTickMissed(j listedJob, from time.Time) (bool, error) {
	if j.Disabled || j.ParentJob != "" {
		return false, nil
	}
	type ledger struct{ Ticks []tickView }
	list, err := fetch[ledger](s, jobPath(j.Name)+"/ticks?_end=1&"+sinceQuery(from).Encode())
	if err != nil || len(list.Ticks) == 0 {
		return false, err
	}
	last := list.Ticks[0]
	if last.Outcome != outcomeMissed && last.Outcome != outcomeSkipped {
		return false, nil
	}
	runs, err := s.runsOf(j.Name)
	return len(runs) == 0 || runs[0].ScheduledAt.Before(last.Due), err
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
		var list []previewed
		for _, j := range jobs {
			if (*only == "" || *only == j.Name) && j.ParentJob == "" && (*disabled || !j.Disabled) {
				list = j.preview(list, zone.Timezone, from, to)
			}
			if len(list) > previewMax {
				return fmt.Errorf("more than %d runs are to come in that time; shorten it, or name a --job", previewMax)
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
	if err != nil {
		return list
	}
	loc = sched.zone(loc)
	_, offset := next.In(loc).Zone()
	for next.Unix() > 0 && next.Before(to) && len(list) <= previewMax { // without a tick, next is 0
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
	file := fs.String("f", "", "`file` of jobs, JSON of one or of a list; of a directory all *.json; "+
		"-: standard input; required")
	prune := fs.Bool("prune", false, "delete the jobs with the --metadata that are not in the file")
	dry := fs.Bool("dry-run", false, "only check the file, and show what would change")
	metadata := metadataFlag(fs)
	return func() error {
		if *prune != (*metadata != nil) {
			return usage("--prune, --metadata: belong together, so that only jobs of the file's kind are deleted")
		}
		if err := need("-f", *file, ""); err != nil {
			return err
		}
		docs, err := readJobs(*file)
		if err == nil && len(docs) == 0 {
			err = fmt.Errorf("%s: has no jobs; \"belfry delete\" deletes one", *file)
		}
		if err != nil {
			return err
		}
		q := metadataQuery(*metadata)
		if *prune {
			q.Set("prune", "")
		}
		q.Set("dry-run", "")
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
	fs.Func("metadata", "only with this `key=value` in their metadata; may be repeated", pairs(m))
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
		if text = bytes.TrimSpace(text); !bytes.HasPrefix(text, []byte("[")) {
			text = slices.Concat([]byte("["), text, []byte("]"))
		}
		var list []json.RawMessage
		if err = json.Unmarshal(text, &list); err != nil {
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
func (s *invocation) showChanges(docs []json.RawMessage, prune bool, metadata map[string]string) (bool, error) {
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
			s.say("+ %s", j.Name)
		case lines != "":
			n["changed"]++
			s.say("~ %s%s", j.Name, lines)
		default:
			n["unchanged"]++
		}
	}
	for _, j := range present {
		meant := prune && !kept[j.Name]
		for k, v := range metadata {
			has, ok := j.Metadata[k]
			meant = meant && ok && has == v
		}
		if meant {
			n["deleted"]++
			s.say("- %s", j.Name)
		}
	}
	s.say("%d new, %d changed, %d deleted, %d unchanged", n["new"], n["changed"], n["deleted"], n["unchanged"])
	return n["new"]+n["changed"]+n["deleted"] > 0, nil
}

// changes returns a line for each field in which the definition differs from what the job was. What looks secret is
// hidden.
func (j job) changes(was job) (lines string, err error) {
	var docs, shown [2]map[string]json.RawMessage
	names := map[string]bool{}
	for i, j := range []job{was, j} {
		j.dropRecord()
		j.Concurrency = cmp.Or(j.Concurrency, concurrencyAllow)
		doc, _ := json.Marshal(j) // what was decoded marshals
		hidden, err := hideSecrets(doc)
		if err := errors.Join(err, json.Unmarshal(doc, &docs[i]), json.Unmarshal(hidden, &shown[i])); err != nil {
			return "", err
		}
		for name := range docs[i] {
			names[name] = true
		}
	}
	for _, name := range sortedKeys(names) {
		if !bytes.Equal(docs[0][name], docs[1][name]) {
			before, after := cmp.Or(string(shown[0][name]), "none"), cmp.Or(string(shown[1][name]), "none")
			lines += "\n" + printable(fmt.Sprintf("    %s: %s -> %s", name, before, after))
		}
	}
	return lines, nil
}

func setupExport(fs *flag.FlagSet, s *invocation) func() error {
	metadata := metadataFlag(fs)
	return func() error {
		jobs, err := fetch[[]job](s, "/v1/jobs?"+metadataQuery(*metadata).Encode())
		for i := range jobs {
			jobs[i].dropRecord()
		}
		if err != nil {
			return err
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

func setupImportCron(fs *flag.FlagSet, s *invocation) func() error {
	c := newCrontab(localZone(s.environ), time.Now())
	fs.BoolVar(&c.system, "system", false, "lines have a user before the command, as in /etc/crontab and /etc/cron.d")
	fs.BoolVar(&c.pattern.Disabled, "disabled", false, disabledHelp)
	fs.Func("tag", "`key=value` of the nodes that run the jobs; without tags every node does; may be repeated",
		pairs(&c.pattern.Tags))
	return func() error {
		var errs []error
		for _, file := range s.args {
			if !c.system && strings.HasPrefix(file, "/etc/cron") {
				return usage("%s: lines there have a user before the command; add --system", file)
			}
			text, err := readInput(file)
			if err != nil {
				return err
			}
			if len(s.args) > 1 {
				c.place = file + ", "
			}
			errs = append(errs, c.read(string(text)))
		}
		if err := errors.Join(errs...); err != nil {
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

	place   string          // the file, if there are several
	env     []string        // of the lines below, NAME=value
	comment []string        // directly above the next line
	names   map[string]bool // of the jobs of all files
	jobs    []job
	notes   []string // what differs from cron
}

// newCrontab returns an empty crontab.
func newCrontab(zone string, now time.Time) *crontab {
	pattern := job{Metadata: map[string]string{"from": "cron"}, Executor: executorShell}
	return &crontab{pattern: pattern, zone: zone, now: now, names: map[string]bool{}}
}

// read adds all lines of a file. The error has a line for each that is wrong.
func (c *crontab) read(text string) error {
	c.env, c.comment, c.pattern.Timezone, c.pattern.OwnerEmail = nil, nil, c.zone, ""
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
			errs = append(errs, fmt.Errorf("%sline %d: %w", c.place, n, err))
		}
		c.comment = nil
	}
	return errors.Join(errs...)
}

// remember keeps a comment, which may describe the line below it. Headings of the columns, ornaments, and lines that
// are only commented out do not.
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
		c.pattern.OwnerEmail = value
		if value != "" && (strings.Count(value, "@") != 1 || strings.Contains(value, ",")) {
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
func (c *crontab) setting(name string) (value string) {
	for _, entry := range c.env {
		if v, ok := strings.CutPrefix(entry, name+"="); ok {
			value = v
		}
	}
	return value
}

// entry makes a job of line n.
func (c *crontab) entry(n int, line string) (err error) {
	fields, command := cutCron(line)
	j, config := c.pattern, map[string]string{}
	if user, rest := cutWord(command); c.system {
		if config["su"], command = user, rest; strings.ContainsAny(user, "/=;&|[") {
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
		config["payload"] = base64.StdEncoding.EncodeToString([]byte(input))
	}
	if shell := cmp.Or(c.setting("SHELL"), "/bin/sh"); shell == "/bin/sh" {
		config["shell"] = "true"
	} else {
		command = shell + " -c '" + strings.ReplaceAll(command, "'", `'\''`) + "'"
	}
	config["command"] = command
	if home := c.setting("HOME"); home != "" {
		config["cwd"] = home
	}
	var env []string
	for _, entry := range c.env {
		if !strings.HasPrefix(entry, "RANDOM_DELAY=") {
			env = append(env, strings.ReplaceAll(entry, ",", `\,`))
		}
	}
	if env != nil {
		config["env"] = strings.Join(env, ",")
	}
	if j.ExecutorConfig, j.DisplayName = config, strings.Join(c.comment, " "); len(j.DisplayName) > 200 {
		j.DisplayName = ""
	}
	if err := j.validate("UTC", c.now.UnixNano()); err != nil {
		return err
	}
	c.jobs, c.names[j.Name] = append(c.jobs, j), true
	if delay := c.setting("RANDOM_DELAY"); delay != "" && delay != "0" {
		c.note(n, "%s starts on time, and not up to %s minutes late; ~ as its minute spreads jobs over the hour",
			j.Name, delay)
	}
	if text := clockChanges(j, c.now); text != "" && fields[0][0] != '*' && fields[1][0] != '*' {
		c.note(n, "%s: cron runs it once all the same when the clock changes; here it runs %s", j.Name, text)
	}
	return nil
}

func (c *crontab) note(n int, format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf("%sline %d: ", c.place, n)+fmt.Sprintf(format, args...))
}

// report says what differs from cron, and what the jobs need.
func (c *crontab) report() []string {
	notes := append(c.notes, fmt.Sprintf("%d jobs", len(c.jobs)))
	if len(c.jobs) > 0 {
		notes = append(notes, "times are in "+c.zone+", this machine's zone, where CRON_TZ names no other; "+
			"TZ=... before this command sets it", "cron starts commands as their user in the home directory; "+
			"belfry as the node's user, see su, where the node was started, see cwd")
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
	return func() (err error) {
		var docs []json.RawMessage
		source, isURL := strings.CutSuffix(strings.TrimSuffix(s.args[0], "/"), "/v1/jobs")
		if isURL || strings.Contains(source, "://") {
			s.addr = source
			for _, kv := range s.environ {
				if secret, ok := strings.CutPrefix(kv, "DKRON_TOKEN="); ok { // BELFRY_TOKEN is for our nodes alone
					s.token = secret
				}
			}
			docs, err = fetch[[]json.RawMessage](s, "/v1/jobs")
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

// fromDkron returns the jobs of a Dkron that can be stored here, with their counters and last times, and notes by job
// on what is otherwise here. Those that were enabled have from=dkron in their metadata.
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
		if was, ok := j.Metadata["from"]; ok {
			note(j, "its metadata from=%s is now from=%s", was, from)
		}
		metadata := map[string]string{}
		maps.Copy(metadata, j.Metadata)
		metadata["from"] = from
		j.Metadata, j.Disabled = metadata, j.Disabled || disabled
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

// cutCron cuts the fields of the schedule off a line, or the word that stands for them.
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

var errBothDays = errors.New("cron runs it on days that match both day fields, as one begins with *, " +
	"and here either would do; write one of them, and let the command check the other")

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
			err = fmt.Errorf("%q: crons differ in what that is; write a range before a step, as in 5-59/10, "+
				"and ~ alone", texts[i])
		}
		if err != nil {
			return "", fmt.Errorf("%s %w", f.name, err)
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
			texts[i] = strings.Join(strings.Fields(strings.Trim(fmt.Sprint(sortedKeys(values)), "[]")), ",")
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
	text = strings.NewReplacer(`\\`, `\\`, `\%`, "%", "%", "\n").Replace(text) // of which a line has none
	if command, input, _ = strings.Cut(text, "\n"); input != "" && !strings.HasSuffix(input, "\n") {
		input += "\n"
	}
	return strings.TrimSpace(command), input
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
		wall := at.UTC().Add(time.Duration(min(before, after)) * time.Second) // the times left out, or repeated
		end := wall.Add(time.Duration(max(before-after, after-before)) * time.Second)
		if next := sched.next(wall.Add(-1)); !next.IsZero() && next.Before(end) {
			how := map[bool]string{true: "not at all on ", false: "twice on "}[after > before]
			texts = append(texts, how+at.Format(time.DateOnly))
		}
	}
	return strings.Join(texts, ", ")
}

// What a command may begin with that says nothing about what it does, what its parts are between, and what begins a
// part that says nothing.
var (
	cronWrappers = strings.Fields("bash chronic command dash do env exec flock if ionice java ksh nice node nohup " +
		"perl php python python2 python3 ruby setsid sh sudo then time timeout zsh")
	cronParts    = regexp.MustCompile(`&&|[|;\n]`)
	cronPreludes = strings.Fields(". : [ [[ cd export mkdir set sleep source test true ulimit umask")
)

// nameOf makes a name that no other job has from a command.
func (c *crontab) nameOf(command string) string {
	var words []string
	for _, part := range cronParts.Split(command, -1) {
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
		case word == "" || word[0] == '-' || strings.Contains(word, "=") || number == nil:
		case ext == ".lock" || ext == ".pid":
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
	_, err := s.ask(http.MethodPost, "/v1/leave", nil)
	return err
}

func listPeers(s *invocation) error {
	members, _ := fetch[[]memberView](s, "/v1/members") // without the right to list them, the status is unknown
	_, err := show(s, "/v1/raft/peers", "NODE ID ADDRESS STATE VOTER STATUS", func(p raftPeer) []string {
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
		if err := need("--peer-id", *peer, "; \"belfry raft list-peers\" shows the ids"); err != nil {
			return err
		}
		return s.removePeer(*peer)
	}
}

// call returns the setup of a command that sends a request without a body, and prints the response or what it has done.
// id is the flag whose value ends the path, unless the command's argument does; "": none.
func call(request, id, done string) func(*flag.FlagSet, *invocation) func() error {
	return func(fs *flag.FlagSet, s *invocation) func() error {
		value := new(string)
		if id != "" {
			value = fs.String(id, "", "the same as the argument")
			s.none = "there is none of that name"
		}
		return func() error {
			if len(s.args) > 0 && *value != "" {
				return usage("--%s: the argument says %q already", id, s.args[0])
			}
			if len(s.args) > 0 {
				*value = s.args[0]
			}
			if err := need("--"+id, *value, ""); id != "" && err != nil {
				return err
			}
			method, path, _ := strings.Cut(request, " ")
			body, err := s.ask(method, path+url.PathEscape(*value), nil)
			if err != nil || done == "" {
				return s.printJSON(body, err)
			}
			return s.say(done, *value)
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
		return s.printJSON(s.ask(http.MethodPost, "/v1/acl/bootstrap", doc))
	}
}

func setupApplyPolicy(fs *flag.FlagSet, s *invocation) func() error {
	name, file := fs.String("name", "", "required"), fs.String("rules-file", "", "required")
	return func() error {
		if err := cmp.Or(need("--name", *name, ""), need("--rules-file", *file, "")); err != nil {
			return err
		}
		rules, err := readNamed("--rules-file", *file)
		if err != nil {
			return err
		}
		return s.printJSON(s.ask(http.MethodPost, "/v1/acl/policies/"+url.PathEscape(*name), policy{*name, rules}))
	}
}

func setupCreateToken(fs *flag.FlagSet, s *invocation) func() error {
	name := fs.String("name", "", "required")
	kind := fs.String("type", tokenClient, "`type` of the token: client or management")
	ttl := fs.String("ttl", "", "`time` after which it is no longer valid, such as 24h")
	var policies []string
	fs.Func("policy", "`name` of a policy; may be given several times", list(&policies))
	return func() error {
		if err := need("--name", *name, ""); err != nil {
			return err
		}
		doc := map[string]any{"Name": *name, "Type": *kind, "ExpirationTTL": *ttl}
		if policies != nil {
			doc["Policies"] = policies
		}
		return s.printJSON(s.ask(http.MethodPost, "/v1/acl/tokens", doc))
	}
}

// removePeer removes a server from the voters. peer is its id, or its name if that is unique.
func (s *invocation) removePeer(peer string) error {
	peers, err := fetch[[]raftPeer](s, "/v1/raft/peers") // without the right to list them, peer must be an id
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
	s.none = errNoServer.Error()
	_, err = s.ask(http.MethodDelete, "/v1/raft/peers/"+url.PathEscape(peer), nil)
	return err
}

// setupRecover makes a stopped server the only voter of a new cluster.
func setupRecover(fs *flag.FlagSet, s *invocation) func() error {
	dir := fs.String("data-dir", "belfry.data", "`directory` of the server")
	sure := fs.Bool("yes-i-lost-a-majority", false,
		"confirm that the other servers never come back: what only they had acknowledged is lost")
	return func() error {
		if !*sure {
			return usage("--yes-i-lost-a-majority: is required; if a majority of the servers can be started again, " +
				"start them: recovery loses what only the others had acknowledged")
		}
		id := crand.Text()
		if err := recoverServer(*dir, id); err != nil {
			return err
		}
		return s.say("This server is the only one of the new cluster %s. Start it, and then the other nodes,\n"+
			"servers and agents, with empty data directories and --retry-join. "+
			"Agents that have --adopt can keep theirs.", id)
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
