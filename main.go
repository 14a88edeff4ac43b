// belfry is a distributed job scheduler in one program: cron for a cluster of
// machines. It speaks Dkron's REST API.
//
// A tour of the source, in the order in which a change travels: main.go wires
// the parts and stops them again; api.go takes requests; scheduler.go decides
// what is due, where it runs and what follows; cluster.go puts every decision
// into one log; store.go keeps the log and the state that it makes, in SQLite;
// executor.go runs what was decided, and reports.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
  belfry version         print the version
  belfry help            print this text
`

func main() {
	os.Exit(commandLine(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// commandLine is the program. It returns the exit status.
func commandLine(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"agent", "--server", "--bootstrap-expect=1"}
	}
	switch args[0] {
	case "agent":
		return runAgent(ctx, args[1:], environ, stdout, stderr)
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, "belfry", version)
		return exitOK
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	fmt.Fprintf(stderr, "belfry: there is no command %q; these are the commands:\n\n%s", args[0], usage)
	return exitUsage
}

// runAgent runs a node until ctx ends or a signal comes.
func runAgent(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args, environ, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitUsage
	}
	// After the first signal the default is back in force: a second one ends
	// the process at once.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := serve(ctx, cfg, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "belfry: %v\n", err)
		return exitError
	}
	return exitOK
}

// config is what an operator may say, by flag or by environment variable.
type config struct {
	Server          bool
	BootstrapExpect int // servers that found a cluster together
	NodeName        string
	BindAddr        string // host:port of the cluster plane
	HTTPAddr        string // host:port of API and page
	Insecure        bool   // API on an address that others can reach, without access control
	DataDir         string
	LogLevel        slog.Level
	Tags            map[string]string
	Datacenter      string
	Region          string
	Timezone        string        // zone of jobs that name none, when the cluster is made
	CatchupWindow   time.Duration // age up to which a missed tick still runs
	ExecutionsKept  int           // newest finished executions of a job that are kept
	LostAfter       time.Duration // of silence of its node, after which an execution is lost
	ShutdownGrace   time.Duration // that running executions have to end when the node stops
}

const catchupWindowMax = 24 * time.Hour // all ticks in it are looked at one by one

// parseConfig reads flags, and for those not given the environment: BELFRY_
// or, for who comes from Dkron, DKRON_ before the flag's name in capitals.
func parseConfig(args, environ []string, stderr io.Writer) (config, error) {
	var cfg config
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	fs := flag.NewFlagSet("belfry agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&cfg.Server, "server", false, "keep state and lead; without it the node only runs jobs")
	fs.IntVar(&cfg.BootstrapExpect, "bootstrap-expect", 0, "`number` of servers that found the cluster together")
	fs.StringVar(&cfg.NodeName, "node-name", host, "unique `name` of this node")
	fs.StringVar(&cfg.BindAddr, "bind-addr", "127.0.0.1:8946", "`address` of the cluster plane")
	fs.StringVar(&cfg.HTTPAddr, "http-addr", "127.0.0.1:8080", "`address` of API and page")
	fs.BoolVar(&cfg.Insecure, "insecure", false, "serve the API without access control on an address that others can reach: whoever can reach it can run commands here")
	fs.StringVar(&cfg.DataDir, "data-dir", "belfry.data", "`directory` of the database and of results on their way")
	fs.TextVar(&cfg.LogLevel, "log-level", slog.LevelInfo, "least `level` that is logged: debug, info, warn or error")
	fs.Func("tag", "`key=value` by which jobs choose this node; may be given several times", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return errors.New("write it as key=value")
		}
		if cfg.Tags == nil {
			cfg.Tags = map[string]string{}
		}
		cfg.Tags[k] = v
		return nil
	})
	fs.StringVar(&cfg.Datacenter, "datacenter", "dc1", "`name` of the node's data center, its tag dc")
	fs.StringVar(&cfg.Region, "region", "global", "`name` of the node's region, its tag region")
	fs.StringVar(&cfg.Timezone, "timezone", localZone(environ), "`zone` of jobs that name none; it is fixed when the cluster is made")
	fs.DurationVar(&cfg.CatchupWindow, "catchup-window", time.Minute, "`age` up to which ticks that nobody could fire run late; older ones are recorded as missed")
	fs.IntVar(&cfg.ExecutionsKept, "executions-keep", 100, "`number` of finished executions that are kept of each job")
	fs.DurationVar(&cfg.LostAfter, "lost-after", 5*time.Minute, "`time` after which an execution is given up whose node does not answer")
	fs.DurationVar(&cfg.ShutdownGrace, "shutdown-grace", 10*time.Second, "`time` that running executions have to end when the node stops")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("%q is no flag; all settings are flags, see \"belfry agent -h\"", fs.Arg(0))
	}
	if err := fromEnvironment(fs, environ); err != nil {
		return cfg, err
	}
	return cfg, cfg.validate()
}

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(fs *flag.FlagSet, environ []string) error {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	values := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		values[k] = v
	}
	var err error
	fs.VisitAll(func(f *flag.Flag) {
		name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		for _, key := range []string{"BELFRY_" + name, "DKRON_" + name} {
			v, ok := values[key]
			if !ok || given[f.Name] || err != nil {
				continue
			}
			given[f.Name] = true
			if e := fs.Set(f.Name, v); e != nil {
				err = fmt.Errorf("%s: %w", key, e)
			}
		}
	})
	return err
}

// validate names the flag that is wrong, and what would be right.
func (c *config) validate() error {
	if !c.Server {
		return errors.New("--server: is required, this version has no nodes that only run jobs")
	}
	if c.BootstrapExpect != 1 {
		return errors.New("--bootstrap-expect: must be 1, this version runs one server")
	}
	if c.NodeName == "" {
		return errors.New("--node-name: must not be empty")
	}
	for flag, addr := range map[string]string{"--http-addr": c.HTTPAddr, "--bind-addr": c.BindAddr} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %q must be host:port", flag, addr)
		}
	}
	if !c.Insecure && !isLoopback(c.HTTPAddr) {
		return fmt.Errorf("--http-addr %s: others could run commands here; use a loopback address such as 127.0.0.1:8080, or say --insecure", c.HTTPAddr)
	}
	if _, err := loadZone(c.Timezone); err != nil {
		return fmt.Errorf("--timezone: %w", err)
	}
	if c.CatchupWindow < 0 || c.CatchupWindow > catchupWindowMax {
		return fmt.Errorf("--catchup-window: must lie between 0 and %s", catchupWindowMax)
	}
	if c.ExecutionsKept < 1 {
		return errors.New("--executions-keep: must be at least 1")
	}
	if c.LostAfter < 2*nodeFailed {
		return fmt.Errorf("--lost-after: must be at least %s", 2*nodeFailed)
	}
	if c.ShutdownGrace < 0 {
		return errors.New("--shutdown-grace: must not be negative")
	}
	return nil
}

// isLoopback reports whether only this machine can reach a host:port.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// localZone returns the name of this machine's zone: TZ, or what
// /etc/localtime points to, else UTC. Go itself only knows it as "Local".
func localZone(environ []string) string {
	for _, kv := range environ {
		if zone, ok := strings.CutPrefix(kv, "TZ="); ok && zone != "" {
			return strings.TrimPrefix(zone, ":")
		}
	}
	path, err := filepath.EvalSymlinks("/etc/localtime")
	if err != nil {
		return "UTC"
	}
	if _, zone, ok := strings.Cut(path, "/zoneinfo/"); ok {
		if _, err := loadZone(zone); err == nil {
			return zone
		}
	}
	return "UTC"
}

// tags returns all tags of the node: the operator's, and those that Dkron's
// nodes have.
func (c *config) tags() map[string]string {
	_, port, _ := net.SplitHostPort(c.BindAddr) // validated
	tags := map[string]string{
		"role": "dkron", "dc": c.Datacenter, "region": c.Region, "version": version, "server": strconv.FormatBool(c.Server),
		"rpc_addr": c.BindAddr, "port": port, "expect": strconv.Itoa(c.BootstrapExpect),
	}
	for k, v := range c.Tags {
		tags[k] = v
	}
	return tags
}

// self returns the node as a member.
func (c *config) self() member {
	host, port, _ := net.SplitHostPort(c.BindAddr) // validated
	n, _ := strconv.Atoi(port)
	return member{Name: c.NodeName, Addr: host, Port: n, Tags: c.tags(), Status: 1}
}

// serve runs a node: it starts from the bottom up, and stops from the top down
// so that nothing loses what it stands on.
func serve(ctx context.Context, cfg config, stdout, stderr io.Writer) (err error) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	listener, err := net.Listen("tcp", cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("--http-addr %s: cannot listen there, choose another address: %w", cfg.HTTPAddr, err)
	}
	defer listener.Close()
	st, err := openStore(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	id, err := st.nodeID()
	if err != nil {
		return err
	}
	sched := newScheduler(schedulerConfig{Catchup: cfg.CatchupWindow, ExecutionsKept: cfg.ExecutionsKept, Timezone: cfg.Timezone, LostAfter: cfg.LostAfter}, st, log)
	exec, err := newExecutor(executorConfig{Node: cfg.NodeName, NodeID: id, DataDir: cfg.DataDir, Log: log, Report: sched.report})
	if err != nil {
		return err
	}
	clu, err := newCluster(server{cfg.NodeName, id}, st, log, sched.lead)
	if err != nil {
		return err
	}
	self := cfg.self()
	sched.propose = func(ctx context.Context, c *command) (applied, error) {
		began := time.Now()
		res, err := clu.propose(ctx, c)
		if res.Index != 0 {
			sched.stats.commits.observe(time.Since(began))
		}
		return res, err
	}
	sched.nodes = func() []node { return []node{{cfg.NodeName, exec.incarnation(), self.Tags}} }
	sched.start = func(_ string, d dispatch) error {
		if err := exec.start(d); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return nil
	}
	sched.ask = func(_ string, q question) (answer, error) { return exec.ask(q) }
	sched.end = func(_ string, k kill) error { return exec.kill(k) }
	web := &http.Server{
		Handler: (&api{
			node: cfg.NodeName, hosts: []string{cfg.NodeName}, store: st, scheduler: sched, log: log,
			members: func() []member { return []member{self} },
			leader:  func() (member, bool) { return self, clu.leading() },
			leading: clu.leading,
			leave:   leave,
			gauges:  func() gauges { return gauges{Running: exec.running(), Undelivered: exec.undelivered()} },
			output: func(ctx context.Context, _ string, execution int64, follow bool, w io.Writer) error {
				return exec.output(ctx, execution, follow, 0, w)
			},
		}).handler(),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}

	// Everything below runs until it is stopped in its turn; what fails stops
	// the rest at once.
	var g errgroup.Group
	failed := make(chan struct{})
	stopDriver, stopReports := spawn(&g, failed, clu.run), spawn(&g, failed, exec.run)
	g.Go(func() error {
		if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	fmt.Fprintf(stdout, "belfry %s: API and page at http://%s, data in %s\n", version, listener.Addr(), cfg.DataDir)
	select {
	case <-ctx.Done():
		log.Info("stopping", "grace", cfg.ShutdownGrace)
	case <-failed:
	}

	// 1. Take no more requests, and answer those that are here.
	drain, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if web.Shutdown(drain) != nil {
		web.Close()
	}
	// 2. Start nothing more.
	sched.stopFiring()
	// 3. Let what runs end, and then end it.
	exec.stop(cfg.ShutdownGrace)
	// 4. Deliver the results; what nobody takes is on disk.
	stopReports()
	// 5. Stop writing, then close the store.
	stopDriver()
	return g.Wait()
}

// spawn runs fn in g and returns what ends it. If fn fails, failed is closed.
func spawn(g *errgroup.Group, failed chan struct{}, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	g.Go(func() error {
		defer close(ended)
		err := fn(ctx)
		if err != nil {
			select {
			case <-failed:
			default:
				close(failed)
			}
		}
		return err
	})
	return func() {
		cancel()
		<-ended
	}
}
